"""What ``doctor`` says of a host that weakens the promises of SECURITY.md."""

from __future__ import annotations

import os
import stat
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reconciler.engine.docker.host import Endpoint
    from reconciler.settings import Settings


def weaknesses(settings: Settings, endpoint: Endpoint | None) -> list[tuple[str, str]]:
    """Return what weakens the host, each with what to do; paths that cannot be read say nothing.

    Args:
        settings: Whose desired file, state directory and publish address are checked.
        endpoint: The engine; None where its address is wrong.
    """
    desired, state = settings.desired.absolute(), settings.state_dir.absolute()
    found = [
        (f"everybody may write {path}", f"chmod o-w {path}")
        for path in (desired, desired.parent)
        if (status := _status(path)) and _is_open(status)
    ]
    if status := _status(state):
        if status.st_uid not in {0, os.geteuid()}:
            whose = f"{state} belongs to uid {status.st_uid}"
            found.append((whose, "run this as the daemon's user"))
        if stat.S_IMODE(status.st_mode) & 0o077:
            found.append((f"other users may enter {state}", f"chmod 0700 {state}"))
    if endpoint is not None and endpoint.socket:
        socket = Path(endpoint.socket)
        if (status := _status(socket)) and status.st_mode & stat.S_IWOTH:
            found.append((f"every local user is root through {socket}", f"chmod 0660 {socket}"))
    elif endpoint is not None and endpoint.ssl is None:
        found.append((f"{endpoint.url} is used without TLS", "set DOCKER_TLS_VERIFY=1"))
    if not _is_loopback(settings.publish_address):
        found.append(
            (
                f"sandboxes' ports are published on {settings.publish_address}, beyond this host",
                "set publish_address to 127.0.0.1, and put a proxy that checks who asks before it",
            )
        )
    return found


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _is_open(status: os.stat_result) -> bool:
    # In a sticky folder such as /tmp, nobody can replace what belongs to another.
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    return bool(status.st_mode & stat.S_IWOTH) and not sticky


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
