"""Whether this process can reach the ports that an engine publishes."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from reconciler.engine.protocol import EngineInfo

LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104
# Any port: connecting a datagram socket only looks a route up, and sends nothing.
_DISCARD: Final = 9


def why_unreachable(info: EngineInfo, publish_address: str) -> str:
    """Why no port published on this address can be reached from here; empty where it can be.

    Ports on a loopback address exist in the engine's network namespace alone. This process is in
    it where the address of the engine's default bridge is one of its own. A rootless engine has
    its bridge elsewhere and forwards the ports to its user, so there it is not asked.
    """
    if info.rootless or not info.gateway or not _is_loopback(publish_address):
        return ""
    if _is_own_address(info.gateway):
        return ""
    return (
        f"the daemon does not share the engine's network, so it cannot reach ports published on "
        f"{publish_address}: run it on the engine's host, in a container with --network host, "
        "or set publish_address to an address of that host"
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(LOOPBACK.get(address, address)).is_loopback
    except ValueError:
        return False


def _is_own_address(address: str) -> bool:
    """A datagram to an own address leaves from that same address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the socket's own method
            sock.connect((address, _DISCARD))
            return bool(sock.getsockname()[0] == address)
    except OSError:
        return False
