"""Use only folders and files that no other user can have created or changed.

/tmp is shared: a folder that an earlier run recorded there may belong to another user by now.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def is_own(path: Path) -> bool:
    """Tell whether it is a folder (no link) that belongs to us and only we can write."""
    try:
        status = path.lstat()
    except OSError:
        return False
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return ours and not status.st_mode & _WRITABLE_BY_OTHERS


def make_folder(path: Path) -> None:
    """Create the folder for us alone, or check that it is ours; RuntimeError if it is not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not is_own(path):
            raise RuntimeError(
                f"{path} belongs to another user, or others may write in it: remove it"
            ) from None


def remembered_folder(record: Path, prefix: str) -> Path:
    """Return the folder in /tmp that the record names, or a new one if that is not ours."""
    folder = recorded_folder(record)
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        write(record, str(folder))
    return folder


def recorded_folder(record: Path) -> Path | None:
    """Return the folder that the record names; None if it is missing or not ours."""
    text = read(record)
    return Path(text) if text and is_own(Path(text)) else None


def read(path: Path) -> str:
    """Read our regular file; empty if it is missing, a link, or another user's."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(path, flags), errors="replace") as file:
            status = os.fstat(file.fileno())
            ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            return file.read() if ours else ""
    except OSError:
        return ""


def write(path: Path, text: str) -> None:
    """Create a new file for us alone, replacing any file of this name."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w") as file:
        file.write(text)
