"""Create what a test needs to install the project on a Debian 12 without network.

python3 -m scripts.rootfs    create a root file system and wheels below build/systemd/
"""

# ruff: noqa: S603 - the programs are Debian's own, found by PATH

from __future__ import annotations

import fcntl
import hashlib
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scripts import debian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_ROOT = Path(__file__).parent.parent
_STORE = _ROOT / "build" / "systemd"
# The oldest systemd that the unit supports, 252, is this one's; its Python is 3.11.
_SUITE, _PYTHON = "bookworm", "3.11"
_PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-venv")
_UNREAD = ("doc", "man", "locale")


def rootfs() -> Path:
    """Return a tar of a Debian with systemd and Python; creating it takes about 25 s."""
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _UNREAD]
    return _made(
        f"{_digest(_SUITE, *_PACKAGES, *_UNREAD)}.tar",
        lambda tar: bootstrap(_SUITE, tar, _PACKAGES, excluded),
    )


def wheels() -> Path:
    """Return a folder with everything that `pip install` of this project needs."""
    files = ("requirements.txt", "requirements-build.txt")
    return _made(f"{_digest(*((_ROOT / file).read_text() for file in files))}.wheels", _download)


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """Create the file or folder unless it exists; safe against concurrent processes."""
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


def bootstrap(
    suite: str, target: Path, packages: Sequence[str], options: Sequence[str] = ()
) -> None:
    """Create a minimal Debian with these packages, in a folder or (by suffix) a tar."""
    debian.say(f"creating a root file system of Debian {suite}")
    listed = _sources(suite)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    command += [f"--aptopt={line}" for line in _apt_options()]
    # Without sources it takes Debian's own.
    command += [*options, suite, str(target), *(["-"] if listed else [])]
    subprocess.run(command, input=listed, text=True, check=True)


def _apt_options() -> list[str]:
    """Return the options with which this machine's apt reaches and checks its mirror."""
    command = ["apt-config", "dump"]
    dump = subprocess.run(command, capture_output=True, text=True)  # noqa: PLW1510
    kept = re.compile(r'Acquire::(Check-|Max-ValidTime|https?::|Retries).* "[^"]+";')
    return [line for line in dump.stdout.splitlines() if kept.match(line)]


def _sources(suite: str) -> str:
    """Return this machine's sources of that Debian, or those of the local release, adapted."""
    form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    asked = subprocess.run([*command, "Origin: Debian"], capture_output=True, text=True)  # noqa: PLW1510
    lines = sorted({line for line in asked.stdout.splitlines() if line.endswith(" main")})
    own = [line for line in lines if line.split()[2].partition("-")[0] == suite]
    # No updates or security fixes of another release.
    plain = [line for line in lines if "-" not in line.split()[2]]
    other = [f"deb {line.split()[1]} {suite} main" for line in plain[:1]]
    return "".join(f"{line}\n" for line in own or other)


def _download(folder: Path) -> None:
    debian.say("downloading the wheels that the project needs")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--only-binary=:all:", f"--python-version={_PYTHON}", f"--dest={folder}"]
    pip += ["--require-hashes", "--requirement=requirements.txt"]
    pip += ["--requirement=requirements-build.txt"]
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
