"""Find out whether this process can reach the ports that an engine publishes."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from reconciler.engine.protocol import EngineInfo

LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104
# Any port: connecting a datagram socket sends nothing, it only looks up a route.
_DISCARD: Final = 9


def why_unreachable(info: EngineInfo, publish_address: str) -> str:
    """Return why ports published on this address cannot be reached from here; empty if they can.

    Ports on a loopback address exist only in the engine's network namespace. This process is in it
    if the gateway of the engine's default bridge is an address of this host. A rootless engine has
    its bridge elsewhere and forwards ports to its user's namespace, so it is not checked.
    """
    if info.rootless or not info.gateway:
        return ""
    try:
        published = ipaddress.ip_address(LOOPBACK.get(publish_address, publish_address))
    except ValueError:
        return ""
    if not published.is_loopback:
        return ""
    family = socket.AF_INET6 if ":" in info.gateway else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the socket's own method
            sock.connect((info.gateway, _DISCARD))
            # A datagram to an address of this host leaves from the same address.
            if sock.getsockname()[0] == info.gateway:
                return ""
    except OSError:
        pass
    return (
        f"the daemon does not share the engine's network, so it cannot reach ports published on "
        f"{publish_address}: run it on the engine's host, in a container with --network host, "
        "or set `publish_address` to an address of that host"
    )
