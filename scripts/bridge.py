"""A network bridge of its own for each private engine, made through the kernel's ioctls.

The bridge's name is the claim on a number, and the number decides the subnet: the kernel lets
one of any number of concurrent makers have a name, so no lock and no file is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import re
import socket
import struct
from pathlib import Path

_SIOCBRADDBR, _SIOCBRDELBR = 0x89A0, 0x89A1
_SIOCSIFADDR, _SIOCSIFNETMASK = 0x8916, 0x891C
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_PREFIX = "rclbr"
_NAME = re.compile(rf"{_PREFIX}\d{{1,4}}")
_SUBNETS = ipaddress.IPv4Network("10.190.0.0/16")
_BLOCK = 21


def claim() -> str:
    """Make the first bridge whose name and subnet nobody has."""
    taken = _routes()
    for number, subnet in enumerate(_SUBNETS.subnets(new_prefix=_BLOCK)):
        if any(route.overlaps(subnet) for route in taken):
            continue
        name = f"{_PREFIX}{number}"
        try:
            _create(name, subnet)
        except FileExistsError:
            continue
        return name
    raise RuntimeError(f"no free subnet in {_SUBNETS} for another engine")


def is_name(text: str) -> bool:
    """Tell whether `claim` may have made a bridge of that name."""
    return _NAME.fullmatch(text) is not None


def names() -> set[str]:
    """List the machine's network interfaces."""
    return {name for _, name in socket.if_nameindex()}


def set_up(name: str) -> None:
    """Bring an interface up, such as the loopback of a new network namespace."""
    with _control() as control:
        _set_up(control, name, up=True)


def remove(name: str) -> None:
    """Take the bridge down and away; one that is gone is fine."""
    with _control() as control, contextlib.suppress(OSError):
        _set_up(control, name, up=False)
        fcntl.ioctl(control, _SIOCBRDELBR, name.encode() + b"\0")


def _create(name: str, subnet: ipaddress.IPv4Network) -> None:
    with _control() as control:
        fcntl.ioctl(control, _SIOCBRADDBR, name.encode() + b"\0")
        try:
            _set_address(control, _SIOCSIFADDR, name, str(subnet[1]))
            _set_address(control, _SIOCSIFNETMASK, name, str(subnet.netmask))
            _set_up(control, name, up=True)
        except BaseException:
            remove(name)
            raise


def _control() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _set_address(control: socket.socket, call: int, name: str, address: str) -> None:
    sockaddr = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
    fcntl.ioctl(control, call, struct.pack("16s16s8x", name.encode(), sockaddr))


def _set_up(control: socket.socket, name: str, *, up: bool) -> None:
    request = struct.pack("16sh22x", name.encode(), 0)
    flags = struct.unpack("16sh22x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
    flags = flags | _IFF_UP if up else flags & ~_IFF_UP
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", name.encode(), flags))


def _routes() -> list[ipaddress.IPv4Network]:
    """Read every route but the default one."""
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    return [_network(row[1], row[7]) for row in rows if row[7] != "00000000"]


def _network(address: str, mask: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network((_address(address), _address(mask)))


def _address(text: str) -> str:
    return socket.inet_ntoa(struct.pack("=I", int(text, 16)))
