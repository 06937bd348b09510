"""What a test needs to install the project on a Debian 12 that has no network: made once.

python3 -m scripts.rootfs    make both, below build/systemd/: a root file system and wheels
"""

# ruff: noqa: S603 - the programs are Debian's own, found by PATH

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scripts import debian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT = Path(__file__).parent.parent
_STORE = _ROOT / "build" / "systemd"
# The oldest systemd that the unit supports, 252, is this one's; its Python is 3.11.
_SUITE, _PYTHON = "bookworm", "3.11"
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-venv")
_UNREAD = ("doc", "man", "locale")


def rootfs() -> Path:
    """Return a tar of a Debian with systemd and Python; about 25 s where there is none yet."""
    return _made(f"{_digest(_SUITE, *_PACKAGES, *_UNREAD)}.tar", _bootstrap)


def wheels() -> Path:
    """Return a folder with all that `pip install` of this project needs."""
    files = ("pyproject.toml", "requirements.txt", "requirements-dev.txt")
    return _made(f"{_digest(*((_ROOT / file).read_text() for file in files))}.wheels", _download)


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """Make the file or folder unless it is there, whoever else is about to."""
    with _locked():
        done, part = _STORE / name, _STORE / f"part.{name}"
        if not done.exists():
            make(part)
            part.rename(done)
        return done


@contextmanager
def _locked() -> Iterator[None]:
    _STORE.mkdir(parents=True, exist_ok=True)
    with (_STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _bootstrap(tar: Path) -> None:
    debian.say(f"making a root file system of Debian {_SUITE}")
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _UNREAD]
    sources = _sources()
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_PACKAGES)}"]
    # Without sources it takes Debian's own.
    command += [*excluded, _SUITE, str(tar), *(["-"] if sources else [])]
    subprocess.run(command, input=sources, text=True, check=True)


def _sources() -> str:
    """List where this machine gets the same Debian from, if it is one: a mirror near by, say."""
    form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    listed = subprocess.run([*command, "Origin: Debian"], capture_output=True, text=True)  # noqa: PLW1510
    lines = {line for line in listed.stdout.splitlines() if f" {_SUITE}" in line}
    return "".join(f"{line}\n" for line in sorted(lines)) if _has_main(lines) else ""


def _has_main(lines: set[str]) -> bool:
    return any(line.split()[2:] == [_SUITE, "main"] for line in lines)


def _download(folder: Path) -> None:
    debian.say("downloading the wheels that the project needs")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--only-binary=:all:", f"--python-version={_PYTHON}", f"--dest={folder}"]
    pip += ["--requirement=requirements.txt", "--constraint=requirements-dev.txt", "hatchling"]
    subprocess.run(pip, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=_ROOT)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


if __name__ == "__main__":
    try:
        rootfs()
        wheels()
    except (OSError, subprocess.CalledProcessError) as error:
        debian.say(f"error: {error}")
        sys.exit(1)
