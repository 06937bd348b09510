"""One table in memory, which knows what of it is not yet durable."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, TypeVar

from reconciler.store.sqlite import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reconciler.store.sqlite import Rows
    from reconciler.store.tables import Table

V = TypeVar("V")


class DirtyTable(Generic[V]):
    """Frozen values by key. What changed is marked by key and written as it is by then.

    So a batch is always one moment of the whole memory, and a key that changes often costs one row.
    """

    def __init__(self, table: Table[V], rows: Rows, touch: Callable[[], None]) -> None:
        self._table = table
        self._values: dict[str, V] = rows.values
        self._unreadable = rows.unreadable
        self._touch = touch
        self._dirty: dict[str, None] = {}
        self.values: Mapping[str, V] = MappingProxyType(self._values)
        self.unreadable: Mapping[str, str] = MappingProxyType(self._unreadable)

    def put(self, key: str, value: V) -> None:
        """Sets a value. An equal one costs nothing."""
        if self._values.get(key) == value:
            return
        self._values[key] = value
        self._mark(key)

    def drop(self, key: str) -> None:
        """Removes a value, or a row that could not be read. Harmless where there is none."""
        if key in self._values or key in self._unreadable:
            self._values.pop(key, None)
            self._mark(key)

    def dirty(self) -> int:
        """How many rows are not yet durable."""
        return len(self._dirty)

    def take(self) -> list[Change]:
        """What is to be written, as of now; it counts as written until it is marked again."""
        taken, self._dirty = self._dirty, {}
        return [Change(self._table, key, self._values.get(key)) for key in taken]

    def put_back(self, changes: Iterable[Change]) -> None:
        """Marks again what could not be written."""
        self._dirty |= {change.key: None for change in changes if change.table is self._table}

    def mark_all(self) -> None:
        """Marks everything: the database is a new one."""
        self._dirty |= dict.fromkeys(self._values)

    def _mark(self, key: str) -> None:
        self._unreadable.pop(key, None)
        self._dirty[key] = None
        self._touch()
