"""Files and folders that only their owner may read, for any umask."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from reconciler.core.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

_OTHERS = 0o077


def private_folder(path: Path) -> None:
    """Create the folder, for its owner only, where it is missing.

    Raises:
        StoreError: it is missing and cannot be created.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(path, error) from error


def private_file(path: Path) -> int:
    """Return a descriptor, to read and write, of a file that is created where it is missing.

    Raises:
        StoreError: it cannot be created, opened, or made private.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise refusal(path, error) from error
    try:
        if os.fstat(descriptor).st_mode & _OTHERS:
            os.fchmod(descriptor, 0o600)
        # A command that root typed must not leave files that the daemon's user cannot open.
        folder = path.parent.stat()
        if os.geteuid() == 0 and os.fstat(descriptor).st_uid != folder.st_uid:
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
    except OSError as error:
        os.close(descriptor)
        raise refusal(path, error) from error
    return descriptor


def refusal(path: Path, error: OSError) -> StoreError:
    """Return the error for a path of the state directory that the system refuses."""
    return StoreError(
        f"{path}: {error.strerror}. The state directory must be writable for this user and have"
        " free space; fix that, or set state_dir to another directory",
    )
