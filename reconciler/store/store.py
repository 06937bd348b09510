"""The whole state in memory, read at once by the loop, and made durable behind it.

Every change counts in memory at once and is written by a task in batches, one transaction each, in
a thread of its own. While the disk refuses, everything goes on in memory, and the writing is tried
again. ``flush`` is for whoever must know that a change is durable.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from reconciler.core.errors import StoreError
from reconciler.store.ledger import LedgerEntry, Pending, Query
from reconciler.store.observed_clock import ObservedClock
from reconciler.store.sqlite import Disk, Rows
from reconciler.store.state import State
from reconciler.store.tables import Changes, Orphan, OrphanKind, Record, Tombstone
from reconciler.store.writer import PendingWrites, Thread, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from reconciler.store.writer import Supervised

__all__ = ["Changes", "LedgerEntry", "Orphan", "OrphanKind", "Record", "Store", "Tombstone"]

RETRY_SECONDS: Final = 3.0
CLOSE_SECONDS: Final = 5.0
LEDGER_ROWS: Final = 100_000


class Store(State):
    """The state of one state directory. Made by ``open`` or ``open_readonly``.

    As an async context manager it writes in the background, and closes at the end.
    """

    def __init__(
        self,
        disk: Disk,
        thread: Thread,
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
            self._wake,
            lambda saved: ObservedClock(saved, monotonic=monotonic, wall=wall),
        )
        self._disk, self._thread, self._readonly, self._closed = disk, thread, readonly, False
        self._backlog = PendingWrites(tuple(self._shelves.values()), pending, self._put_time)
        self._flusher = Writer(
            disk,
            thread,
            self._backlog,
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
        """The store of a state directory, whose lock the caller holds.

        Args:
            state_dir: Made where it is missing.
            on_trouble: Told once when writing begins to fail.
            on_recovered: Told once when it works again.
            ledger_rows: How many entries the ledger keeps, about.
            wall: Seconds since the epoch, for display.
            monotonic: Seconds that pass while this process runs.
            retry: Seconds between two tries while writing fails.

        Raises:
            StoreError: the database cannot be used; nothing was changed. A full disk is no reason
                where it was used before: it is read, and written once there is room.
        """
        return await cls._opened(
            Disk(state_dir, ledger_rows, readonly=False),
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
        """The store as it is now, also beside a running daemon; empty where there is none yet.

        Changes to it are a rehearsal: they count in memory and are never written.

        Raises:
            StoreError: the database cannot be read.
        """
        return await cls._opened(
            Disk(state_dir, LEDGER_ROWS, readonly=True),
            on_trouble=lambda _: None,
            on_recovered=lambda: None,
            wall=wall,
            monotonic=monotonic,
            retry=RETRY_SECONDS,
            readonly=True,
        )

    async def __aenter__(self) -> Self:
        if not self._readonly:
            self._flusher.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def supervised_by(self, supervised: Supervised) -> None:
        """Have the background task run by this. Call it before the ``async with`` block."""
        self._flusher.supervised_by(supervised)

    async def flush(self) -> None:
        """Returns when every change made before the call is durable.

        Durable is what a kill of this process cannot undo. A power cut may undo the last moments;
        docs/adr/0001-store.md says what then.

        Raises:
            StoreError: the disk refuses; the changes wait on and are tried again.
        """
        if not self._readonly:
            await self._flusher.flush()

    async def close(self) -> None:
        """Writes what waits, where that works, and lets go of the file. Harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        self._thread.hurry(CLOSE_SECONDS)
        await self._flusher.stop()
        self._put_time()
        with suppress(StoreError):
            await self.flush()
        with suppress(StoreError):
            await self._thread.run(self._disk.close)
        self._thread.end()

    async def events(
        self, sandbox: str | None = None, *, after: int | None = None, limit: int = 200
    ) -> list[LedgerEntry]:
        """Ledger entries, oldest first, durable or not.

        Args:
            sandbox: Only those about this one; None: all.
            after: None: the newest ``limit`` there are; else the next ``limit`` after this id.
            limit: How many at most.

        Raises:
            StoreError: the ledger cannot be read.
        """
        query = Query(sandbox, after, limit)
        waiting = [entry for entry in self._backlog.ledger.all() if query.matches(entry)]
        return query.cut([*await self._thread.run(self._disk.events, query), *waiting])

    @property
    def readonly(self) -> bool:
        """Whether this is a rehearsal: what is changed here is never written."""
        return self._readonly

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be written now; None: all is well."""
        return self._flusher.trouble

    @property
    def pending(self) -> int:
        """How many rows are not yet durable."""
        return self._flusher.pending

    def _wake(self) -> None:
        self._flusher.wake()

    @classmethod
    async def _opened(cls, disk: Disk, **options: Any) -> Self:
        thread = Thread(disk.state_dir)
        try:
            loaded = await thread.run(disk.open)
            return cls(disk, thread, loaded, **options)
        except BaseException:
            await thread.run(disk.close)
            thread.end()
            raise
