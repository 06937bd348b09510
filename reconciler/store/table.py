"""The state in memory, and which of it is not yet durable."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from reconciler.store.ledger import LedgerEntry, Pending
    from reconciler.store.tables import Kind

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Change:
    """A row to write. ``value`` None: the row is to be deleted."""

    kind: Kind[Any]
    key: str
    value: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one kind. ``unreadable`` maps keys to why this release cannot read the row."""

    values: dict[str, Any] = field(default_factory=dict, repr=False)
    unreadable: dict[str, str] = field(default_factory=dict)


class DirtyTable(Generic[V]):
    """Frozen values of one kind, by key, with dirty tracking.

    A changed key is marked, and its value is read when it is written. So a batch is always one
    moment of the whole memory, and a key that changes often costs one row.
    """

    def __init__(self, kind: Kind[V], rows: Rows, touch: Callable[[], None]) -> None:
        self._kind = kind
        self._values: dict[str, V] = rows.values
        self._unreadable = rows.unreadable
        self._touch = touch
        self._dirty: dict[str, None] = {}
        self.values: Mapping[str, V] = MappingProxyType(self._values)
        self.unreadable: Mapping[str, str] = MappingProxyType(self._unreadable)

    def put(self, key: str, value: V) -> None:
        """Set a value. An equal one costs nothing."""
        if self._values.get(key) == value:
            return
        self._values[key] = value
        self._mark(key)

    def drop(self, key: str) -> None:
        """Remove a value or an unreadable row; a key without either is no error."""
        if key in self._values or key in self._unreadable:
            self._values.pop(key, None)
            self._mark(key)

    def dirty(self) -> int:
        """Return the number of rows that are not yet durable."""
        return len(self._dirty)

    def take(self) -> list[Change]:
        """Return the dirty rows as of now, and count them as written until they change again."""
        taken, self._dirty = self._dirty, {}
        return [Change(self._kind, key, self._values.get(key)) for key in taken]

    def put_back(self, changes: Iterable[Change]) -> None:
        """Mark the rows of this kind that could not be written."""
        self._dirty |= {change.key: None for change in changes if change.kind is self._kind}

    def mark_all(self) -> None:
        """Mark all rows: the database is a new one."""
        self._dirty |= dict.fromkeys(self._values)

    def _mark(self, key: str) -> None:
        self._unreadable.pop(key, None)
        self._dirty[key] = None
        self._touch()


@dataclass(frozen=True, slots=True)
class PendingWrites:
    """All that is not yet durable.

    ``put_time`` saves the observed time, so that it is in every batch: no time in the database is
    ever ahead of it.
    """

    tables: Sequence[DirtyTable[Any]]
    ledger: Pending
    put_time: Callable[[], None]

    def __len__(self) -> int:
        return sum(table.dirty() for table in self.tables) + len(self.ledger)

    def take(self) -> tuple[list[Change], tuple[LedgerEntry, ...]]:
        """Return one moment of the memory. Ledger entries stay here until they are ``written``."""
        self.put_time()
        return [change for table in self.tables for change in table.take()], self.ledger.all()

    def put_back(self, changes: Sequence[Change]) -> None:
        """Mark the rows that could not be written."""
        for table in self.tables:
            table.put_back(changes)

    def mark_all(self) -> None:
        """Mark all rows: the database is a new one."""
        for table in self.tables:
            table.mark_all()
