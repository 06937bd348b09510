"""The ledger: the event history of each sandbox, newest last, bounded in rows and bytes."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping, Sequence

MAX_PENDING: Final = 10_000
MAX_ROWS_PER_SANDBOX: Final = 1_000
MAX_TEXT: Final = 4_096
MAX_DATA: Final = 16_384
_PRUNE_EVERY: Final = 256


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One event. ``id`` grows with time; ``at`` is seconds since the epoch."""

    id: int
    at: float
    event: str
    sandbox: str | None
    cause: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """Which entries to return, oldest first.

    ``after`` None: the newest ``limit``; else the next ``limit`` after that id.
    """

    sandbox: str | None = None
    after: int | None = None
    limit: int = 200

    def matches(self, entry: LedgerEntry) -> bool:
        """Whether the query selects the entry, apart from the limit."""
        ours = self.sandbox is None or entry.sandbox == self.sandbox
        return ours and entry.id > (self.after or 0)

    def cut(self, entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
        """Return at most ``limit`` of the entries, in order, each once."""
        ordered = [entry for _, entry in sorted({entry.id: entry for entry in entries}.items())]
        if self.after is None:
            return ordered[max(0, len(ordered) - self.limit) :]
        return ordered[: self.limit]


class Pending:
    """Entries that are not yet durable: the newest 10,000. Older ones are lost."""

    def __init__(self, last_id: int, clock: Callable[[], float]) -> None:
        self._last_id = last_id
        self._clock = clock
        self._entries: deque[LedgerEntry] = deque(maxlen=MAX_PENDING)

    def __len__(self) -> int:
        return len(self._entries)

    def append(
        self, event: str, sandbox: str | None, cause: str, data: Mapping[str, Any]
    ) -> LedgerEntry:
        """Add one entry, clipped to the size bound."""
        self._last_id += 1
        entry = LedgerEntry(self._last_id, self._clock(), event, sandbox, _text(cause), clip(data))
        self._entries.append(entry)
        return entry

    def all(self) -> tuple[LedgerEntry, ...]:
        """Return the entries, oldest first."""
        return tuple(self._entries)

    def written(self, entries: Sequence[LedgerEntry]) -> None:
        """Remove entries that have become durable."""
        while entries and self._entries and self._entries[0].id <= entries[-1].id:
            self._entries.popleft()


def clip(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data as JSON holds it: texts up to 4 KiB each, 16 KiB in all."""
    clipped = {str(key): _clipped(value) for key, value in data.items()}
    text = json.dumps(clipped, default=str)
    if len(text) > MAX_DATA:
        return {"clipped": text[:MAX_DATA]}
    return dict(json.loads(text))


def _clipped(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return [_clipped(item) for item in value]
    return value


def _text(value: str) -> str:
    # A lone surrogate, which a file name can bring, has no UTF-8 form and would fail the write.
    return value[:MAX_TEXT].encode(errors="replace").decode()


class LedgerTable:
    """The ledger's rows in the database, pruned every few hundred.

    The newest 1,000 rows of each sandbox stay, so that a crash loop does not push out the history
    of other sandboxes, and ``max_rows`` in all.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._unpruned = 0
        self._touched: set[str | None] = set()

    def insert(self, connection: sqlite3.Connection, entries: Sequence[LedgerEntry]) -> None:
        """Write entries, some of which may be written already, and prune if it is time."""
        rows = (
            (each.id, each.at, each.event, each.sandbox, each.cause, json.dumps(each.data))
            for each in entries
        )
        connection.executemany(_INSERT, rows)
        self._unpruned += len(entries)
        self._touched.update(entry.sandbox for entry in entries)
        if self._unpruned >= _PRUNE_EVERY:
            bounds = ((sandbox, MAX_ROWS_PER_SANDBOX) for sandbox in self._touched if sandbox)
            connection.executemany(_PRUNE_SANDBOX, bounds)
            connection.execute(_PRUNE, (self._max_rows,))
            self._unpruned = 0
            self._touched.clear()

    def select(self, connection: sqlite3.Connection, query: Query) -> list[LedgerEntry]:
        """Return the selected entries, oldest first."""
        select = _SELECT[query.sandbox is not None, query.after is None]
        bound = {"sandbox": query.sandbox, "after": query.after or 0, "limit": query.limit}
        rows = connection.execute(select, bound)
        return query.cut(
            LedgerEntry(entry_id, at, event, subject, cause, json.loads(data))
            for entry_id, at, event, subject, cause, data in rows
        )

    def last_id(self, connection: sqlite3.Connection) -> int:
        """Return the newest entry's id; 0: there is none."""
        (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM ledger").fetchone()
        return int(last)


_INSERT: Final = (
    "INSERT OR IGNORE INTO ledger (id, at, event, sandbox, cause, data) VALUES (?, ?, ?, ?, ?, ?)"
)
_PRUNE: Final = (
    "DELETE FROM ledger WHERE id <= (SELECT id FROM ledger ORDER BY id DESC LIMIT 1 OFFSET ?)"
)
_PRUNE_SANDBOX: Final = (
    "DELETE FROM ledger WHERE sandbox = ?1 AND id <="
    " (SELECT id FROM ledger WHERE sandbox = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)"
)
# By (one sandbox, newest first).
_SELECT: Final = {
    (False, False): "SELECT id, at, event, sandbox, cause, data FROM ledger"
    " WHERE id > :after ORDER BY id LIMIT :limit",
    (False, True): "SELECT id, at, event, sandbox, cause, data FROM ledger"
    " WHERE id > :after ORDER BY id DESC LIMIT :limit",
    (True, False): "SELECT id, at, event, sandbox, cause, data FROM ledger"
    " WHERE sandbox = :sandbox AND id > :after ORDER BY id LIMIT :limit",
    (True, True): "SELECT id, at, event, sandbox, cause, data FROM ledger"
    " WHERE sandbox = :sandbox AND id > :after ORDER BY id DESC LIMIT :limit",
}
