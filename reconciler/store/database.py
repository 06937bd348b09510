"""The SQLite file: private, in WAL mode, at a known version; or a clear refusal and no damage."""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import StoreError
from reconciler.store.migrations import MIGRATIONS
from reconciler.store.private_files import private_file, private_folder, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE: Final = "reconciler.db"
APPLICATION_ID: Final = 0x52434C52  # the letters RCLR
VERSION: Final = len(MIGRATIONS)
_BUSY_SECONDS: Final = 5.0
_WAL_BYTES: Final = 4 << 20
# The log's index, the log's beginning, a page of each, and some to spare.
_ROOM_TO_BEGIN: Final = 64 << 10
_PRIMARY_CODE: Final = 0xFF  # the rest of an SQLite error code only refines it

_RESCUE: Final = (
    "Nothing was changed. Move it (with its -wal and -shm files) away and start again: everything"
    " declared is adopted from its containers' labels, with the same session keys and ports"
)


def connect(state_dir: Path) -> sqlite3.Connection:
    """The database of the state directory, made or migrated where that is needed.

    The directory is made where it is missing. The connection belongs to the calling thread, is in
    autocommit mode, and is written to within ``transaction``.

    Raises:
        StoreError: it cannot be made, is damaged, is not ours, or is of a newer release.
    """
    path = state_dir / FILE
    private_folder(state_dir)
    os.close(private_file(path))
    with complaints(path):
        _inspect(path)
        return _prepared(path)


def connect_readonly(state_dir: Path) -> sqlite3.Connection | None:
    """The database for a reader that changes nothing; None: there is none yet.

    Raises:
        StoreError: it cannot be read, is damaged, is not ours, or is of another release.
    """
    path = state_dir / FILE
    with complaints(path):
        if not _has_content(path):
            return None
        version = _inspect(path)
        if version == 0:
            return None
        if version < VERSION:
            raise StoreError(f"{path} is of an older release: start this release's daemon once")
        return _readonly(path)


def lacks_room(state_dir: Path) -> bool:
    """Whether its disk is so full that not even what SQLite needs to begin can be made."""
    try:
        found = os.statvfs(state_dir)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _ROOM_TO_BEGIN


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing. Takes the write lock at once, so that it never fails half-way for a lock."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextmanager
def complaints(path: Path) -> Iterator[None]:
    """Turns what SQLite or the system says into what a person can do about it.

    Raises:
        StoreError: instead of any other error.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(_explain(path, error)) from error
    except OSError as error:
        raise refusal(path, error) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"{path}: a value cannot be stored ({type(error).__name__})") from error


def _explain(path: Path, error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return f"{path} is damaged or not a database ({error}). {_RESCUE}"
    advice = _ADVICE.get(code, "see the system's log about this disk")
    return f"{path}: {error}: {advice}"


_ADVICE: Final = {
    sqlite3.SQLITE_FULL: "free space on its disk",
    sqlite3.SQLITE_IOERR: "check its disk's health and free space",
    sqlite3.SQLITE_READONLY: "make it and its folder writable for this user",
    sqlite3.SQLITE_CANTOPEN: "make its folder writable for this user, and check its free space",
    sqlite3.SQLITE_PERM: "make it accessible for this user",
    sqlite3.SQLITE_BUSY: "another program holds it: close that",
}


def _inspect(path: Path) -> int:
    """The version of a sound database of ours; 0: an empty file. Looks without writing."""
    if not _has_content(path):
        return 0
    connection = _readonly(path)
    try:
        _check_integrity(path, connection)
        return _known_version(path, connection)
    finally:
        connection.close()


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _readonly(path: Path) -> sqlite3.Connection:
    try:
        return _open(f"{path.absolute().as_uri()}?mode=ro")
    except sqlite3.OperationalError:
        if _has_content(path.with_name(f"{FILE}-wal")):
            raise
        # No log, and a folder in which no index of one can be made: the file alone is the truth.
        return _open(f"{path.absolute().as_uri()}?immutable=1")


def _open(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _check_integrity(path: Path, connection: sqlite3.Connection) -> None:
    (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise StoreError(f"{path} is damaged ({finding}). {_RESCUE}")


def _known_version(path: Path, connection: sqlite3.Connection) -> int:
    version = _pragma(connection, "user_version")
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
    if _pragma(connection, "application_id") != APPLICATION_ID and not (empty and version == 0):
        raise StoreError(f"{path} is another program's database. {_RESCUE}")
    if version > VERSION:
        raise StoreError(
            f"{path} was made by a newer release (its version is {version}, this release knows"
            f" {VERSION}): install that release, or use another state_dir. Nothing was changed",
        )
    return version


def _prepared(path: Path) -> sqlite3.Connection:
    connection = _open(f"{path.absolute().as_uri()}?mode=rw")
    try:
        _configure(connection)
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _configure(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")


def _migrate(connection: sqlite3.Connection) -> None:
    done = _pragma(connection, "user_version")
    for version, statements in enumerate(MIGRATIONS[done:], start=done + 1):
        with transaction(connection):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
