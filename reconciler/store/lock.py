"""One daemon for each state directory. The kernel drops the lock when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final, Self

from reconciler.core.errors import LockedError, StoreError
from reconciler.store.private_files import private_file, private_folder, refusal

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "lock"
# `holder` takes a shared lock for an instant; a start in that instant must not fail.
_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.05
_MAX_BYTES: Final = 4096


class StateLock:
    """Holds the state directory while the ``with`` block runs, and creates it where it is missing.

    Args:
        state_dir: The directory.
        socket: The holder's control socket, for a process that finds the lock taken.
    """

    def __init__(self, state_dir: Path, socket: Path | None = None) -> None:
        self._state_dir = state_dir
        self._socket = socket
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            LockedError: another process holds it; the message names it.
            StoreError: the lock file cannot be created or written.
        """
        private_folder(self._state_dir)
        path = self._state_dir / FILE
        descriptor = private_file(path)
        try:
            self._take(descriptor)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise refusal(path, error) from error
            raise
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        # The file stays: if it were unlinked, two processes could lock two files of one name.
        os.close(self._descriptor)
        self._descriptor = -1

    def _take(self, descriptor: int) -> None:
        attempts = 1
        while not _lock(descriptor, fcntl.LOCK_EX):
            if attempts == _ATTEMPTS:
                pid = _content(descriptor).get("pid")
                who = f"the process with pid {pid}" if pid else "another process"
                raise LockedError(
                    f"{self._state_dir} is in use by {who}: stop it first, or set another"
                    " state_dir and another instance for this one"
                )
            attempts += 1
            time.sleep(_PAUSE_SECONDS)
        socket = self._socket and str(self._socket)
        content = json.dumps({"pid": os.getpid(), "socket": socket}).encode()
        # Written before truncated, it needs no new space on a full disk.
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))


def holder(state_dir: Path) -> int | None:
    """Return the process id of the holder of the state directory; None: there is no holder.

    0: a holder that has not written its process id yet.

    Raises:
        StoreError: this user may not read the lock file, so the holder is unknown.
    """
    path = state_dir / FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror}; run this as the daemon's user, or as root",
        ) from error
    try:
        free = _lock(descriptor, fcntl.LOCK_SH)
        return None if free else int(_content(descriptor).get("pid", 0))
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _content(descriptor: int) -> dict[str, Any]:
    # Empty between the holder's lock and its write, and stale after a kill: only a hint.
    try:
        content = json.loads(os.pread(descriptor, _MAX_BYTES, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
