"""One daemon per state directory. The kernel drops the lock when its holder dies, however."""

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
    from types import TracebackType

FILE: Final = "lock"
# `holder` takes a shared lock for an instant; a start in that very instant must not fail.
_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.05
_MAX_BYTES: Final = 4096


class StateLock:
    """Holds the state directory while the ``with`` block runs, and makes it where it is missing.

    Args:
        state_dir: The directory.
        socket: Where the holder listens, for whoever finds the lock taken.
    """

    def __init__(self, state_dir: Path, socket: Path | None = None) -> None:
        self._state_dir = state_dir
        self._socket = socket
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Takes the lock.

        Raises:
            LockedError: another process holds it; the message names it.
            StoreError: the lock file cannot be made.
        """
        private_folder(self._state_dir)
        descriptor = private_file(self._state_dir / FILE)
        try:
            self._take(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The file stays: to unlink it would let two processes lock two files of one name.
        os.close(self._descriptor)
        self._descriptor = -1

    def _take(self, descriptor: int) -> None:
        if not _lock_patiently(descriptor):
            raise LockedError(_who_holds(self._state_dir, _content(descriptor)))
        try:
            _write(descriptor, {"pid": os.getpid(), "socket": self._socket and str(self._socket)})
        except OSError as error:
            raise refusal(self._state_dir / FILE, error) from error


def holder(state_dir: Path) -> int | None:
    """The process id of whoever holds the state directory now; None: nobody does.

    0: somebody who has not yet said who.

    Raises:
        StoreError: this user may not read the lock file, so it cannot be told.
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


def _lock_patiently(descriptor: int) -> bool:
    for _ in range(_ATTEMPTS - 1):
        if _lock(descriptor, fcntl.LOCK_EX):
            return True
        time.sleep(_PAUSE_SECONDS)
    return _lock(descriptor, fcntl.LOCK_EX)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(descriptor: int, content: dict[str, Any]) -> None:
    # In this order, it needs no new room on a full disk.
    text = json.dumps(content).encode()
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))


def _content(descriptor: int) -> dict[str, Any]:
    # Empty between the holder's lock and its write, and stale after a kill: only a hint.
    try:
        content = json.loads(os.pread(descriptor, _MAX_BYTES, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _who_holds(state_dir: Path, content: dict[str, Any]) -> str:
    pid = content.get("pid")
    who = f"the process with pid {pid}" if pid else "another process"
    return (
        f"{state_dir} is in use by {who}: stop it first, or give this one a state_dir and an"
        " instance of its own"
    )
