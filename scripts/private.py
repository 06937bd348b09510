"""Folders and files that nobody but this user can have made or changed.

/tmp is everybody's: a folder there that an earlier run remembers may be another user's by now.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def is_own(path: Path) -> bool:
    """Tell whether it is a folder, no link, that belongs to us and that only we may write in."""
    try:
        status = path.lstat()
    except OSError:
        return False
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return ours and not status.st_mode & _WRITABLE_BY_OTHERS


def make_folder(path: Path) -> None:
    """Make the folder for us alone, or check that it is our own; RuntimeError where it is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not is_own(path):
            raise RuntimeError(
                f"{path} belongs to another user, or others may write in it: remove it"
            ) from None


def remembered_folder(record: Path, prefix: str) -> Path:
    """Return the folder in /tmp that the record names, or a new one where that is not ours."""
    folder = recorded_folder(record)
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        write(record, str(folder))
    return folder


def recorded_folder(record: Path) -> Path | None:
    """Return the folder that the record names; None where it is not there or not ours."""
    text = read(record)
    return Path(text) if text and is_own(Path(text)) else None


def read(path: Path) -> str:
    """Read our own regular file; empty where there is none, or it is a link or another user's."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags), errors="replace") as file:
            status = os.fstat(file.fileno())
            ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            return file.read() if ours else ""
    except OSError:
        return ""


def write(path: Path, text: str) -> None:
    """Make a new file for us alone in the place of whatever has the name."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w") as file:
        file.write(text)
