"""Files and folders that only their owner may read, whatever the umask says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from reconciler.core.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

_OTHERS = 0o077


def private_folder(path: Path) -> None:
    """Makes the folder, for its owner only, where it is missing.

    Raises:
        StoreError: it is not there and cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(path, error) from error


def private_file(path: Path) -> int:
    """A descriptor, to read and write, of a file that is made where it is missing.

    Raises:
        StoreError: it cannot be made, opened, or kept from others' eyes.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise refusal(path, error) from error
    try:
        _keep_private(descriptor)
        _give_to_owner_of(path.parent, descriptor)
    except OSError as error:
        os.close(descriptor)
        raise refusal(path, error) from error
    return descriptor


def refusal(path: Path, error: OSError) -> StoreError:
    """What a person is told when the system refuses a path of the state directory."""
    return StoreError(
        f"{path}: {error.strerror}. The state directory must be writable for this user and have"
        " free space; put that right or set state_dir to another one",
    )


def _keep_private(descriptor: int) -> None:
    if os.fstat(descriptor).st_mode & _OTHERS:
        os.fchmod(descriptor, 0o600)


def _give_to_owner_of(folder: Path, descriptor: int) -> None:
    # A command that root typed must not leave files that the daemon's own user cannot open.
    owner = folder.stat()
    if os.geteuid() == 0 and os.fstat(descriptor).st_uid != owner.st_uid:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
