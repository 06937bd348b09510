"""The whole state in memory, and a background task that makes it durable.

Every change counts in memory at once. A task writes the changes in batches, one transaction each,
in another thread. While the disk refuses, work continues in memory, and the write is retried.
``flush`` is for callers that must know that a change is durable.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from reconciler.core.errors import StoreError
from reconciler.store.ledger import LedgerEntry, Pending, Query
from reconciler.store.observed_clock import ObservedClock
from reconciler.store.sqlite import Database
from reconciler.store.state import State
from reconciler.store.table import PendingWrites, Rows
from reconciler.store.tables import Changes, Orphan, OrphanKind, Record, Tombstone
from reconciler.store.writer import DatabaseWorker, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from reconciler.store.writer import Supervise

__all__ = ["Changes", "LedgerEntry", "Orphan", "OrphanKind", "Record", "Store", "Tombstone"]

RETRY_SECONDS: Final = 3.0
CLOSE_SECONDS: Final = 5.0
LEDGER_ROWS: Final = 100_000


class Store(State):
    """The state of one state directory. Created by ``open`` or ``open_readonly``.

    As an async context manager it writes in the background, and closes at exit.
    """

    def __init__(
        self,
        database: Database,
        worker: DatabaseWorker,
        loaded: tuple[Mapping[str, Rows], int],
        *,
        on_trouble: Callable[[StoreError], None],
        on_recovered: Callable[[], None],
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        retry: float,
        readonly: bool,
    ) -> None:
        content, last_id = loaded
        pending = Pending(last_id, wall)
        super().__init__(
            content,
            pending,
            lambda: self._writer.wake(),  # noqa: PLW0108 - the writer is created below
            lambda saved: ObservedClock(saved, monotonic=monotonic, wall=wall),
        )
        self._database, self._worker = database, worker
        self._readonly, self._closed = readonly, False
        save_time = partial(self.save_time, always=True)
        self._pending = PendingWrites(tuple(self._tables.values()), pending, save_time)
        self._writer = Writer(
            database,
            worker,
            self._pending,
            on_trouble=on_trouble,
            on_recovered=on_recovered,
            retry=retry,
        )

    @classmethod
    async def open(
        cls,
        state_dir: Path,
        *,
        on_trouble: Callable[[StoreError], None],
        on_recovered: Callable[[], None],
        ledger_rows: int = LEDGER_ROWS,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        retry: float = RETRY_SECONDS,
    ) -> Self:
        """Open the store of a state directory, whose lock the caller holds.

        Args:
            state_dir: Created where it is missing.
            on_trouble: Called once when writing begins to fail.
            on_recovered: Called once when it works again.
            ledger_rows: How many entries the ledger keeps, about.
            wall: Seconds since the epoch, for display.
            monotonic: Seconds that pass while this process runs.
            retry: Seconds between two attempts while writing fails.

        Raises:
            StoreError: the database cannot be used; nothing was changed. On a full disk, an
                existing database is read, and written once there is room.
        """
        return await cls._opened(
            Database(state_dir, ledger_rows, readonly=False),
            on_trouble=on_trouble,
            on_recovered=on_recovered,
            wall=wall,
            monotonic=monotonic,
            retry=retry,
            readonly=False,
        )

    @classmethod
    async def open_readonly(
        cls,
        state_dir: Path,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Open the store as it is now, also beside a running daemon; empty where there is none.

        Its changes are a dry run: they count in memory and are never written.

        Raises:
            StoreError: the database cannot be read.
        """
        return await cls._opened(
            Database(state_dir, LEDGER_ROWS, readonly=True),
            on_trouble=lambda _: None,
            on_recovered=lambda: None,
            wall=wall,
            monotonic=monotonic,
            retry=RETRY_SECONDS,
            readonly=True,
        )

    async def __aenter__(self) -> Self:
        if not self._readonly:
            self._writer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def supervised_by(self, supervise: Supervise) -> None:
        """Run the background task under this supervisor. Call it before the ``async with``."""
        self._writer.supervised_by(supervise)

    async def flush(self) -> None:
        """Return when every change made before the call is durable.

        A kill of this process cannot undo a durable change. A power cut may undo the last moments;
        docs/adr/0001-store.md says what follows.

        Raises:
            StoreError: the disk refuses; the changes stay pending, and the write is retried.
        """
        if not self._readonly:
            await self._writer.flush()

    async def close(self) -> None:
        """Write what is pending, if possible, and close the file. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._worker.hurry(CLOSE_SECONDS)
        await self._writer.stop()
        self.save_time(always=True)
        with suppress(StoreError):
            await self.flush()
        with suppress(StoreError):
            await self._worker.run(self._database.close)
        self._worker.end()

    async def events(
        self, sandbox: str | None = None, *, after: int | None = None, limit: int = 200
    ) -> list[LedgerEntry]:
        """Return ledger entries, oldest first, durable or not.

        Args:
            sandbox: Only entries about this sandbox; None: all.
            after: None: the newest ``limit``; else the next ``limit`` after this id.
            limit: How many at most.

        Raises:
            StoreError: the ledger cannot be read.
        """
        query = Query(sandbox, after, limit)
        waiting = [entry for entry in self._pending.ledger.all() if query.matches(entry)]
        return query.cut([*await self._worker.run(self._database.events, query), *waiting])

    @property
    def readonly(self) -> bool:
        """Whether this is a dry run: changes are never written."""
        return self._readonly

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be written now; None: the last write succeeded."""
        return self._writer.trouble

    @property
    def pending(self) -> int:
        """The number of rows that are not yet durable."""
        return self._writer.pending

    @classmethod
    async def _opened(cls, database: Database, **options: Any) -> Self:
        worker = DatabaseWorker(database.state_dir)
        try:
            loaded = await worker.run(database.open)
            return cls(database, worker, loaded, **options)
        except BaseException:
            await worker.run(database.close)
            worker.end()
            raise
