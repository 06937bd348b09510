"""Install the Debian packages that a command needs and this machine lacks, if we are root.

python3 -m scripts.debian venv|demo|test|fresh    install what that make target needs
"""

# ruff: noqa: S603, S607 - apt-get is found by PATH and the packages are named by our own code

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.unixhttp import DEFAULT_HOST, answers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Includes the folders of root's programs, which a user's PATH may lack.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def say(message: str) -> None:
    """Print to stderr; stdout is for output that programs read."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def static_busybox() -> str | None:
    """Return the path of a statically linked busybox; None without one."""
    path = shutil.which("busybox", path=PATH)
    if path is None:
        return None
    with Path(path).open("rb") as file:
        # A dynamically linked program names its loader in the first bytes.
        return None if b"/ld-" in file.read(4096) else path


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name, path=PATH) is not None


# How to see that a package is installed; the names are the same from Debian 12 to sid.
_PACKAGES: dict[str, Callable[[], bool]] = {
    "python3-venv": lambda: importlib.util.find_spec("ensurepip") is not None,
    "docker.io": lambda: _program("dockerd")() and _program("containerd")(),
    "iptables": _program("iptables"),
    "iproute2": _program("ip"),
    "busybox-static": lambda: static_busybox() is not None,
    "systemd": lambda: _program("systemd-analyze")() and _program("systemd-sysusers")(),
    "docker-registry": _program("docker-registry"),
    "mmdebstrap": _program("mmdebstrap"),
    "rsync": _program("rsync"),
    "vim-tiny": _program("vim.tiny"),
}
_NEEDS = {
    "venv": ("python3-venv",),
    "engine": ("docker.io", "iptables", "iproute2"),
    "demo": ("python3-venv", "docker.io", "iptables", "iproute2", "busybox-static"),
    "test": tuple(_PACKAGES),
    "fresh": ("mmdebstrap",),
}
_NO_ROOT = {
    "engine": "no Docker engine answers, and only root can start one here",
    "demo": "no Docker engine answers, and only root can start one here",
    "test": "the tests start Docker engines, which only root can",
    "fresh": "only root can create a root file system and start it",
}


def running_engine() -> str | None:
    """Return the DOCKER_HOST of an engine that answers: the one set, else the default socket."""
    given = os.environ.get("DOCKER_HOST")
    if given and answers(given):
        return given
    if given:
        say(f"DOCKER_HOST={given} does not answer")
    return DEFAULT_HOST if answers(DEFAULT_HOST) else None


def provide(purpose: str) -> None:
    """Install the missing packages of a make target; RuntimeError if we cannot.

    The error and the message are one line each and name all packages.
    """
    is_root = os.geteuid() == 0
    if purpose == "demo" and running_engine():
        # Without root there is no busybox to install; the engine then pulls one.
        _install(("python3-venv", "busybox-static") if is_root else ("python3-venv",))
    elif is_root or purpose not in _NO_ROOT:
        _install(_NEEDS[purpose])
    else:
        missing = " ".join(_missing(_NEEDS[purpose]))
        first = f"; as root: apt-get install {missing}" if missing else ""
        raise RuntimeError(f"{_NO_ROOT[purpose]}{first}")


def _missing(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if not _PACKAGES[package]()]


def _install(packages: Sequence[str]) -> None:
    missing = _missing(packages)
    if not missing:
        return
    names = " ".join(missing)
    if os.geteuid() != 0 or not _program("apt-get")():
        raise RuntimeError(f"packages are missing; as root: apt-get install {names}")
    say(f"installing {names} with apt-get")
    _apt("update", "-qq")
    _apt("install", "-qq", "-y", "--option=Dpkg::Use-Pty=0", "--no-install-recommends", *missing)


def _apt(*arguments: str) -> None:
    subprocess.run(
        ["apt-get", *arguments],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )


def main() -> int:
    """Install the packages of each target on the command line."""
    try:
        for purpose in sys.argv[1:]:
            provide(purpose)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
