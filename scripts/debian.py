"""Install what is missing, where the machine is a Debian and we are its root."""

# ruff: noqa: S603, S607 - apt-get is found by PATH and the packages are named by our own code

from __future__ import annotations

import os
import shutil
import subprocess
import sys


def say(message: str) -> None:
    """Tell the user, on stderr: stdout is for what other programs read."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def can_install() -> bool:
    """Tell whether apt-get would have a chance."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(*packages: str) -> None:
    """Install packages without a question asked."""
    say(f"installing {' '.join(packages)} with apt-get")
    _apt("update", "-q")
    _apt("install", "-q", "-y", "--no-install-recommends", *packages)


def _apt(*arguments: str) -> None:
    subprocess.run(
        ["apt-get", *arguments],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )


if __name__ == "__main__":
    install(*sys.argv[1:])
