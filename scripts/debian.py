"""Install what a command needs and this machine lacks, where it is a Debian and we are root.

python3 -m scripts.debian venv|demo|test|fresh    install what that command of make needs
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

# Root's own programs are there even where its PATH leaves their folders out.
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def say(message: str) -> None:
    """Tell the user, on stderr: stdout is for what other programs read."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def static_busybox() -> str | None:
    """Return the path of a busybox that needs no libraries, if there is one."""
    path = shutil.which("busybox", path=_PATH)
    if path is None:
        return None
    with Path(path).open("rb") as file:
        # The ELF header of a dynamic program names its loader.
        return None if b"/ld-" in file.read(4096) else path


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name, path=_PATH) is not None


# What tells that a package is installed; the names hold for Debian 12 to sid.
_PACKAGES: dict[str, Callable[[], bool]] = {
    "python3-venv": lambda: importlib.util.find_spec("ensurepip") is not None,
    "docker.io": lambda: _program("dockerd")() and _program("containerd")(),
    "iptables": _program("iptables"),
    "busybox-static": lambda: static_busybox() is not None,
    "systemd": lambda: _program("systemd-analyze")() and _program("systemd-sysusers")(),
    "docker-registry": _program("docker-registry"),
    "mmdebstrap": _program("mmdebstrap"),
    "rsync": _program("rsync"),
    "vim-tiny": _program("vim.tiny"),
}
_NEEDS = {
    "venv": ("python3-venv",),
    "engine": ("docker.io", "iptables"),
    "demo": ("python3-venv", "docker.io", "iptables", "busybox-static"),
    "test": tuple(_PACKAGES),
    "fresh": ("mmdebstrap",),
}
_NO_ROOT = {
    "engine": "no Docker engine answers, and only root can start one here",
    "demo": "no Docker engine answers, and only root can start one here",
    "test": "the tests start Docker engines, which only root can",
    "fresh": "only root can make a root file system and start it",
}


def running_engine() -> str | None:
    """Return the DOCKER_HOST of an engine that answers: the one that is set, or Docker's own."""
    given = os.environ.get("DOCKER_HOST")
    if given and answers(given):
        return given
    if given:
        say(f"DOCKER_HOST={given} does not answer")
    return DEFAULT_HOST if answers(DEFAULT_HOST) else None


def provide(purpose: str) -> None:
    """Install the packages that the purpose needs and that are missing; RuntimeError if we cannot.

    The error and the message are one line each and name all packages.
    """
    is_root = os.geteuid() == 0
    if purpose == "demo" and running_engine():
        # Without root, the engine pulls busybox.
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
        raise RuntimeError(f"missing; install as root first: apt-get install {names}")
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
    """Provide for the command that is named."""
    try:
        for purpose in sys.argv[1:]:
            provide(purpose)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
