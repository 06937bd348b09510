"""Create and remove the network bridge of each private engine, with iproute2's `ip`.

The bridge's name claims a number, and the number decides the subnet. The kernel gives a name to
only one of any number of concurrent processes, so no lock and no file is needed.
"""

# ruff: noqa: S603, S607 - ip is found by PATH, and our own code names the interfaces

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import socket
import subprocess

from scripts import debian

_PREFIX = "rclbr"
_NAME = re.compile(rf"{_PREFIX}\d{{1,4}}")
_SUBNETS = ipaddress.IPv4Network("10.190.0.0/16")
_BLOCK = 21


def claim() -> str:
    """Create the first bridge whose name and subnet are free, and return its name."""
    rows = json.loads(_ip("-json", "-4", "route", "show") or "[]")
    routes = [ipaddress.IPv4Network(row["dst"]) for row in rows if row["dst"] != "default"]
    for number, subnet in enumerate(_SUBNETS.subnets(new_prefix=_BLOCK)):
        if any(route.overlaps(subnet) for route in routes):
            continue
        name = f"{_PREFIX}{number}"
        try:
            _ip("link", "add", "name", name, "type", "bridge")
        except RuntimeError:
            if name in names():
                continue
            raise
        try:
            _ip("address", "add", f"{subnet[1]}/{_BLOCK}", "dev", name)
            set_up(name)
        except BaseException:
            remove(name)
            raise
        return name
    raise RuntimeError(f"no free subnet in {_SUBNETS} for another engine: stop one of them")


def is_name(text: str) -> bool:
    """Tell whether the text has the form of the names that `claim` gives."""
    return _NAME.fullmatch(text) is not None


def names() -> set[str]:
    """List the machine's network interfaces."""
    return {name for _, name in socket.if_nameindex()}


def set_up(name: str) -> None:
    """Bring an interface up, such as the loopback of a new network namespace."""
    _ip("link", "set", "dev", name, "up")


def remove(name: str) -> None:
    """Remove the bridge, if it exists."""
    with contextlib.suppress(RuntimeError):
        _ip("link", "delete", "dev", name)


def _ip(*arguments: str) -> str:
    """Run `ip` and return its output; RuntimeError with the reason if it fails."""
    done = subprocess.run(
        ["ip", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": debian.PATH},
    )
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
