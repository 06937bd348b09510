"""The SQLite file: private, in WAL mode, at a known version; or a clear refusal and no damage.

All of this runs in the store's one thread, and nothing of it in the event loop.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import StoreError
from reconciler.store.ledger import LedgerEntry, LedgerTable, Query
from reconciler.store.private_files import private_file, private_folder, refusal
from reconciler.store.table import Change, Rows
from reconciler.store.tables import (
    KINDS,
    MIGRATIONS,
    RECORDS,
    SPEC_KIND,
    EncodedRecord,
    Record,
    encode,
    encode_record,
    spec_id_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FILE: Final = "reconciler.db"
APPLICATION_ID: Final = 0x52434C52  # the letters RCLR
VERSION: Final = len(MIGRATIONS)
_BUSY_SECONDS: Final = 5.0
_WAL_BYTES: Final = 4 << 20
# The WAL index, the header of the WAL, a page of each, and some to spare.
_ROOM_TO_BEGIN: Final = 64 << 10
_DELETE: Final = "DELETE FROM state WHERE kind = ? AND key = ?"
_INSERT: Final = "INSERT INTO state (kind, key, body) VALUES (?, ?, ?)"
_PRIMARY_CODE: Final = 0xFF  # the other bits of an SQLite error code only refine it

_RESCUE: Final = (
    "Nothing was changed. Move it (with its -wal and -shm files) away and start again: everything"
    " declared is adopted from its containers' labels, with the same session keys and ports"
)
_ADVICE: Final = {
    sqlite3.SQLITE_FULL: "free space on its disk",
    sqlite3.SQLITE_IOERR: "check its disk's health and free space",
    sqlite3.SQLITE_READONLY: "make it and its folder writable for this user",
    sqlite3.SQLITE_CANTOPEN: "make its folder writable for this user, and check its free space",
    sqlite3.SQLITE_PERM: "make it accessible for this user",
    sqlite3.SQLITE_BUSY: "another program holds it: close that",
}


class Database:
    """The database of one state directory. Every method belongs to the thread that opened it.

    Args:
        state_dir: The folder of the file.
        ledger_rows: How many rows the ledger may have.
        readonly: Create and change nothing; a missing database counts as an empty one.

    Attributes:
        trouble: Why it could only be read when it was opened; None: it can be written.
    """

    def __init__(self, state_dir: Path, ledger_rows: int, *, readonly: bool) -> None:
        self.state_dir = state_dir
        self._path = state_dir / FILE
        self._readonly = readonly
        self._ledger = LedgerTable(ledger_rows)
        self._connection: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        # By record, the id of its spec in the file, and how many records have each.
        self._specs: dict[str, str] = {}
        self._spec_users: Counter[str] = Counter()
        self.trouble: StoreError | None = None

    def open(self) -> tuple[dict[str, Rows], int]:
        """Open and load: rows by the name of their kind, and the ledger's last id.

        On a full disk, an existing database is only read, and ``trouble`` says so: what is known is
        enough to manage what exists, and the next write opens the file again.

        Raises:
            StoreError: it cannot be opened or read.
        """
        connect_to = connect_readonly if self._readonly else connect
        try:
            self._connection = connect_to(self.state_dir)
            return self._load()
        except StoreError as error:
            self.close()
            if self._readonly or not lacks_room(self.state_dir):
                raise
            with suppress(StoreError), closing(self):
                self._connection = connect_readonly(self.state_dir)
                if self._connection is not None:
                    known = self._load()
                    self.trouble = error
                    return known
            raise
        except BaseException:
            self.close()
            raise

    def recreate_where_lost(self) -> bool:
        """Create a new database if the file was deleted, and connect if not connected.

        Returns:
            Whether it connected, so that everything has to be written again.

        Raises:
            StoreError: it cannot be created, or another file has its name.
        """
        with sqlite_errors(self._path):
            # Not Path.exists: since Python 3.14 it is False where the file cannot be examined.
            try:
                there = self._path.stat() if self._file is not None else None
            except (FileNotFoundError, NotADirectoryError):
                there = None
                self.close()
            if self._file and there and not os.path.samestat(self._file, there):
                raise StoreError(f"{self._path} was replaced by another file: start again")
        if self._connection is not None:
            return False
        self._connection = connect(self.state_dir)
        self._file = self._path.stat()
        self._specs, self._spec_users = {}, Counter()
        return True

    def write(self, changes: Sequence[Change], entries: Sequence[LedgerEntry]) -> None:
        """Make all of it durable, or none.

        Raises:
            StoreError: it cannot be written.
        """
        assert self._connection is not None
        with sqlite_errors(self._path), transaction(self._connection) as connection:
            # All deletes first: a host port may move from one sandbox to another in one batch.
            for change in changes:
                connection.execute(_DELETE, (change.kind.name, change.key))
            records: dict[str, EncodedRecord | None] = {}
            for change in changes:
                record = encode_record(change.value) if isinstance(change.value, Record) else None
                if change.kind is RECORDS:
                    records[change.key] = record
                if change.value is not None:
                    body = record.body if record else encode(change.value)
                    connection.execute(_INSERT, (change.kind.name, change.key, body))
            specs = {record.spec_id: record.spec for record in records.values() if record}
            for spec_id, spec in specs.items():
                # A row that exists may be damaged.
                connection.execute(_DELETE, (SPEC_KIND, spec_id))
                connection.execute(_INSERT, (SPEC_KIND, spec_id, spec))
            users = Counter(record.spec_id for record in records.values() if record)
            users.subtract(self._specs[name] for name in records if name in self._specs)
            unused = [
                spec_id for spec_id in users if not self._spec_users[spec_id] + users[spec_id]
            ]
            for spec_id in unused:
                connection.execute(_DELETE, (SPEC_KIND, spec_id))
            self._ledger.insert(connection, entries)
        self._spec_users.update(users)
        for spec_id in unused:
            del self._spec_users[spec_id]
        for name, record in records.items():
            self._specs.pop(name, None)
            if record:
                self._specs[name] = record.spec_id

    def events(self, query: Query) -> list[LedgerEntry]:
        """Return the ledger's entries, oldest first.

        Raises:
            StoreError: they cannot be read.
        """
        if self._connection is None:
            return []
        with sqlite_errors(self._path):
            return self._ledger.select(self._connection, query)

    def close(self) -> None:
        """Close the file; a closed one is no error."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._file = None

    def _load(self) -> tuple[dict[str, Rows], int]:
        content = {kind.name: Rows() for kind in KINDS}
        decoders = {kind.name: kind.decode for kind in KINDS}
        connection = self._connection
        if connection is None:
            return content, 0
        with sqlite_errors(self._path):
            self._file = self._path.stat()
            connection.execute("BEGIN")  # one moment's content, also while a daemon writes
            select = "SELECT key, body FROM state WHERE kind = ?"
            specs = dict(connection.execute(select, (SPEC_KIND,)))
            self._specs = {}
            for kind, key, body in connection.execute("SELECT kind, key, body FROM state"):
                if kind not in decoders:
                    continue  # a spec, or a newer release wrote it
                if kind == RECORDS.name and (spec_id := spec_id_in(body)):
                    self._specs[key] = spec_id
                try:
                    content[kind].values[key] = decoders[kind](body, specs)
                except (ValueError, TypeError, AttributeError, LookupError) as error:
                    # Only the type: the message of a failed validation may quote a secret.
                    content[kind].unreadable[key] = type(error).__name__
            self._spec_users = Counter(self._specs.values())
            last_id = self._ledger.last_id(connection)
            connection.execute("COMMIT")
        return content, last_id


def connect(state_dir: Path) -> sqlite3.Connection:
    """Open the database of the state directory for writing; create or migrate it where needed.

    A missing directory is created. The connection belongs to the calling thread, is in autocommit
    mode, and is written to within ``transaction``.

    Raises:
        StoreError: it cannot be created, is damaged, is not ours, or is of a newer release.
    """
    path = state_dir / FILE
    private_folder(state_dir)
    os.close(private_file(path))
    with sqlite_errors(path):
        _inspect(path)
        connection = _open(f"{path.absolute().as_uri()}?mode=rw")
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
            done = _pragma(connection, "user_version")
            for version, statements in enumerate(MIGRATIONS[done:], start=done + 1):
                with transaction(connection):
                    for statement in statements:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {version}")
        except BaseException:
            connection.close()
            raise
        return connection


def connect_readonly(state_dir: Path) -> sqlite3.Connection | None:
    """Open the database for a reader that changes nothing; None: there is none yet.

    Raises:
        StoreError: it cannot be read, is damaged, is not ours, or is of another release.
    """
    path = state_dir / FILE
    with sqlite_errors(path):
        version = _inspect(path)
        if version == 0:
            return None
        if version < VERSION:
            raise StoreError(f"{path} is of an older release: start this release's daemon once")
        return _open_readonly(path)


def lacks_room(state_dir: Path) -> bool:
    """Whether the disk is too full for the files that SQLite creates when it opens a database."""
    try:
        found = os.statvfs(state_dir)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _ROOM_TO_BEGIN


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All or nothing. Takes the write lock at once, so that no statement fails for a lock later."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the system into messages that say what to do.

    Raises:
        StoreError: instead of any other error.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            message = f"{path} is damaged or not a database ({error}). {_RESCUE}"
        else:
            advice = _ADVICE.get(code, "see the system's log about this disk")
            message = f"{path}: {error}: {advice}"
        raise StoreError(message) from error
    except OSError as error:
        raise refusal(path, error) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"{path}: a value cannot be stored ({type(error).__name__})") from error


def _inspect(path: Path) -> int:
    """Return the version of a sound database of ours; 0: there is none, or an empty file.

    Nothing is written.

    Raises:
        StoreError: it is damaged, not ours, or of a newer release.
    """
    if not _has_content(path):
        return 0
    connection = _open_readonly(path)
    try:
        (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise StoreError(f"{path} is damaged ({finding}). {_RESCUE}")
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
    finally:
        connection.close()


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _open_readonly(path: Path) -> sqlite3.Connection:
    try:
        return _open(f"{path.absolute().as_uri()}?mode=ro")
    except sqlite3.OperationalError:
        if _has_content(path.with_name(f"{FILE}-wal")):
            raise
        # No WAL, and a folder in which its index cannot be created: the file alone is the truth.
        return _open(f"{path.absolute().as_uri()}?immutable=1")


def _open(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
