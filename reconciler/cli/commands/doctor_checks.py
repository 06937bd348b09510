"""The checks of ``doctor`` on this host: files, ports, disks, and what is open to other users."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from reconciler.core.disk_pressure import Usage, judge, size
from reconciler.core.errors import ReconcilerError, SettingsError
from reconciler.engine.docker.host import resolve
from reconciler.manifest.sync import defaults_of, validate
from reconciler.reconcile.identity import can_bind
from reconciler.resources.disk_guard import space_of
from reconciler.store.lock import holder
from reconciler.store.store import Store
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from reconciler.engine.docker.host import Endpoint
    from reconciler.settings import Settings

Verdict = Literal["OK", "WARN", "FAIL", "SKIP"]
_SAMPLED_PORTS: Final = 200
# The share of free ports below which the range is too narrow.
_MANY: Final = 0.5


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; ``fix`` is empty if nothing is wrong."""

    check: str
    verdict: Verdict
    found: str
    fix: str = ""

    @property
    def line(self) -> str:
        """The text for people."""
        return f"{self.check}: {self.found}" + (f"\n      -> {self.fix}" if self.fix else "")


async def check_desired_file(settings: Settings) -> Finding:
    """Validate the desired file and its env files."""
    loaded, diagnostics = await validate(settings.desired, defaults_of(settings))
    if diagnostics:
        fix = f"fix it; `reconciler check {settings.desired}` lists every error"
        return Finding("desired file", "FAIL", str(diagnostics[0]), fix)
    return Finding("desired file", "OK", f"{settings.desired}: {len(loaded.records)} sandboxes")


async def check_state_directory(settings: Settings) -> Finding:
    """Check that the database can be read, and that the folder can be written."""
    check, folder = "state directory", settings.state_dir
    try:
        async with await Store.open_readonly(folder) as store:
            records = len(store.records)
        pid = holder(folder)
    except ReconcilerError as error:
        # The messages of the store end with the fix.
        text = str(error).removesuffix(". Nothing was changed")
        found, *fix = re.split(r"; |\. (?=[A-Z])", text, maxsplit=1)
        if not fix:
            found, _, last = text.rpartition(": ")
            fix = [last]
        return Finding(check, "FAIL", found, fix[0])
    if not os.access(_nearest(folder), os.W_OK):
        return Finding(check, "FAIL", f"{folder}: not writable", f"chown {folder}")
    running = f", used by the daemon with pid {pid}" if pid else ""
    return Finding(check, "OK", f"{folder}: {records} records{running}")


def check_ports(settings: Settings) -> Finding:
    """Try to bind a sample of the port range."""
    first, last = settings.port_range
    step = max((last - first + 1) // _SAMPLED_PORTS, 1)
    sample = range(first, last + 1, step)
    free = sum(can_bind(settings.publish_address, port) for port in sample)
    found = f"{first}-{last}: {free} of {len(sample)} sampled ports are free"
    if not free:
        return Finding("host ports", "FAIL", found, "set port_range to a range that is free")
    if free < _MANY * len(sample):
        return Finding("host ports", "WARN", found, "set port_range to a wider range")
    return Finding("host ports", "OK", found)


async def check_disk(check: str, path: Path, settings: Settings) -> Finding:
    """Measure the free space of the disk that has ``path``."""
    try:
        space = await BoundedCalls().run(path, lambda: space_of(_nearest(path)))
    except OSError as error:
        fix = "check that the disk is mounted and responds"
        return Finding(check, "WARN", f"{path}: {error.strerror}", fix)
    usage = Usage(check, str(path), space.free, space.total)
    found = f"{path}: {size(usage.free)} of {size(usage.total)} free"
    limits = settings.disk_limits
    if judge((), [usage], limits):
        fix = (
            f"free some, up to {size(limits.enough(usage.total))}: no sandbox is created below "
            f"{size(limits.least(usage.total))} (settings disk_min_free, disk_min_free_percent)"
        )
        return Finding(check, "FAIL", found, fix)
    return Finding(check, "OK", found)


async def check_exposure(settings: Settings) -> list[Finding]:
    """Warn about what weakens the promises of SECURITY.md."""
    check = "exposure"
    try:
        endpoint = resolve(settings.docker_host, os.environ)
    except SettingsError:
        endpoint = None  # the check of the engine reports it
    try:
        found = await BoundedCalls().run(check, lambda: weaknesses(settings, endpoint))
    except OSError as error:
        return [Finding(check, "WARN", str(error), "check that the disk is mounted and responds")]
    return [Finding(check, "WARN", what, fix) for what, fix in found] or [
        Finding(check, "OK", "the engine, the state and the desired file are closed to others")
    ]


def weaknesses(settings: Settings, endpoint: Endpoint | None) -> list[tuple[str, str]]:
    """Return each weakness of the host with its fix. Paths that cannot be read are skipped.

    Args:
        settings: Name the desired file, the state directory and the publish address.
        endpoint: The engine; None if its address is invalid.
    """
    desired, state = settings.desired.absolute(), settings.state_dir.absolute()
    found = [
        (f"every user can write {path}", f"chmod o-w {path}")
        for path in (desired, desired.parent)
        if (status := _stat(path))
        and status.st_mode & stat.S_IWOTH
        # In a sticky folder such as /tmp, nobody can replace another user's file.
        and not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX)
    ]
    if status := _stat(state):
        if status.st_uid not in {0, os.geteuid()}:
            what = f"{state} is owned by uid {status.st_uid}"
            found.append((what, "run this as the daemon's user"))
        if stat.S_IMODE(status.st_mode) & 0o077:
            found.append((f"other users can access {state}", f"chmod 0700 {state}"))
    if endpoint is not None and endpoint.socket:
        socket = Path(endpoint.socket)
        if (status := _stat(socket)) and status.st_mode & stat.S_IWOTH:
            what = f"every local user can become root through {socket}"
            found.append((what, f"chmod 0660 {socket}"))
    elif endpoint is not None and endpoint.ssl is None:
        found.append((f"{endpoint.url} is used without TLS", "set DOCKER_TLS_VERIFY=1"))
    try:
        is_loopback = ip_address(settings.publish_address).is_loopback
    except ValueError:
        is_loopback = settings.publish_address == "localhost"
    if not is_loopback:
        what = f"other hosts can reach sandboxes: publish_address is {settings.publish_address}"
        fix = "set publish_address to 127.0.0.1, and put an authenticating proxy in front"
        found.append((what, fix))
    return found


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _nearest(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    # Not Path.exists: before Python 3.14 it raises if this user may not search the directory.
    return next((p for p in (path, *path.parents) if os.path.exists(p)), path)  # noqa: PTH110
