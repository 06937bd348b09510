"""What the store's one thread does: open, load, write, read. Nothing runs in the event loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reconciler.core.errors import StoreError
from reconciler.store import database
from reconciler.store.ledger import LedgerEntry, LedgerTable, Query
from reconciler.store.tables import TABLES, Table

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Change:
    """One row as it is to be. ``value`` None: it is to be gone."""

    table: Table[Any]
    key: str
    value: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rows:
    """One table's content. ``unreadable`` maps keys to why this release cannot read the row."""

    values: dict[str, Any] = field(default_factory=dict, repr=False)
    unreadable: dict[str, str] = field(default_factory=dict)


class Disk:
    """The database as its thread sees it. Every method belongs to the thread that opened it.

    Args:
        state_dir: Where the file is.
        ledger_rows: How many rows the ledger may have.
        readonly: Nothing is made or changed; a database that is not there is an empty one.

    Attributes:
        trouble: Why it could be read only, when it was opened; None: it can be written.
    """

    def __init__(self, state_dir: Path, ledger_rows: int, *, readonly: bool) -> None:
        self.state_dir = state_dir
        self._path = state_dir / database.FILE
        self._readonly = readonly
        self._ledger = LedgerTable(ledger_rows)
        self._connection: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        self.trouble: StoreError | None = None

    def open(self) -> tuple[dict[str, Rows], int]:
        """Opens and loads: content by table name, and the ledger's last id.

        On a full disk, a database that was there before is read, and ``trouble`` says so.

        Raises:
            StoreError: it cannot be opened or read.
        """
        connect = database.connect_readonly if self._readonly else database.connect
        try:
            self._connection = connect(self.state_dir)
            return self._load()
        except StoreError as error:
            self.close()
            known = self._read_on_full_disk()
            if known is None:
                raise
            self.trouble = error
            return known
        except BaseException:
            self.close()
            raise

    def _read_on_full_disk(self) -> tuple[dict[str, Rows], int] | None:
        """What is known is enough to take care of what is there; the next write opens anew."""
        if self._readonly or not database.lacks_room(self.state_dir):
            return None
        try:
            self._connection = database.connect_readonly(self.state_dir)
            return self._load() if self._connection else None
        except StoreError:
            return None
        finally:
            self.close()

    def begin_anew_where_lost(self) -> bool:
        """Makes a new database where the file was taken away under us.

        Returns:
            Whether it did, so that everything has to be written again.

        Raises:
            StoreError: it cannot be made, or another file stands in its place.
        """
        with database.complaints(self._path):
            if self._file is not None and not self._path.exists():
                self.close()
            elif self._file is not None and not _same(self._file, self._path.stat()):
                raise StoreError(f"{self._path} was replaced by another file: start again")
        if self._connection is not None:
            return False
        self._connection = database.connect(self.state_dir)
        self._file = self._path.stat()
        return True

    def write(self, changes: Sequence[Change], entries: Sequence[LedgerEntry]) -> None:
        """Makes all of it durable, or none.

        Raises:
            StoreError: it cannot be written.
        """
        assert self._connection is not None
        with database.complaints(self._path), database.transaction(self._connection) as connection:
            # All deletes first: a host port may go from one sandbox to another in one batch.
            for change in changes:
                connection.execute(change.table.delete, (change.key,))
            for change in changes:
                _insert(connection, change)
            self._ledger.insert(connection, entries)

    def events(self, query: Query) -> list[LedgerEntry]:
        """The ledger's entries, oldest first.

        Raises:
            StoreError: they cannot be read.
        """
        if self._connection is None:
            return []
        with database.complaints(self._path):
            return self._ledger.select(self._connection, query)

    def close(self) -> None:
        """Lets go of the file. Harmless when it is done twice."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._file = None

    def _load(self) -> tuple[dict[str, Rows], int]:
        connection = self._connection
        if connection is None:
            return {table.name: Rows() for table in TABLES}, 0
        with database.complaints(self._path):
            self._file = self._path.stat()
            connection.execute("BEGIN")  # one moment's content, also while a daemon writes
            content = {table.name: _rows(connection, table) for table in TABLES}
            last_id = self._ledger.last_id(connection)
            connection.execute("COMMIT")
        return content, last_id


def _insert(connection: sqlite3.Connection, change: Change) -> None:
    if change.value is None:
        return
    row = change.table.encode(change.key, change.value)
    for statement in change.table.insert:
        connection.execute(statement, row)


def _rows(connection: sqlite3.Connection, table: Table[Any]) -> Rows:
    rows = Rows()
    for row in connection.execute(table.select):
        try:
            rows.values[row[0]] = table.decode(*row)
        except (ValueError, TypeError, AttributeError) as error:
            # Only the kind: the message of a failed validation quotes what may be a secret.
            rows.unreadable[row[0]] = type(error).__name__
    return rows


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
