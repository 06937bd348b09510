"""Makes the memory durable: whatever waits is written in one transaction, and tried again."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from reconciler.core.errors import StoreError
from reconciler.progress import activity, waiting
from reconciler.threads import SerialThread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from reconciler.store.ledger import LedgerEntry, Pending
    from reconciler.store.sqlite import Change, Disk
    from reconciler.store.table import DirtyTable

    Supervised = Callable[[str, Callable[[], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]]

P = ParamSpec("P")
R = TypeVar("R")

# Seconds. A large batch on a slow disk takes a few.
WORK_LIMIT: Final = 30.0


class Thread:
    """The one thread that touches the database: SQLite may block, the event loop may not.

    Args:
        path: The state directory, for error messages.
        limit: Seconds that one piece of work may take; then the disk is taken to hang.
    """

    def __init__(self, path: Path, limit: float = WORK_LIMIT) -> None:
        self._path = path
        self._limit = limit
        self._executor = SerialThread("store")
        self._hung: asyncio.Future[Any] | None = None

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do the work there. A caller that is cancelled leaves it running to its end.

        Raises:
            StoreError: it is not done in time, or earlier work hangs.
        """
        if self._hung is not None and not self._hung.done():
            raise self._no_answer()
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._executor, lambda: work(*args, **kwargs))
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from error
        future.add_done_callback(_note_exception)
        with waiting(self._limit):
            await asyncio.wait({future}, timeout=self._limit)
        if not future.done():
            self._hung = future
            raise self._no_answer()
        return future.result()

    def hurry(self, limit: float) -> None:
        """Wait for at most ``limit`` seconds from now on: the process ends."""
        self._limit = limit

    def end(self) -> None:
        """Let the thread end after what it has to do."""
        self._executor.shutdown()

    def _no_answer(self) -> StoreError:
        return StoreError(
            f"{self._path}: its disk does not answer within {self._limit:g} s: check the disk or"
            " the mount; nothing is made durable until it answers"
        )


def _note_exception(future: asyncio.Future[Any]) -> None:
    # Nothing may wait for it any more; an exception that nobody asks for would be logged.
    if not future.cancelled():
        future.exception()


@dataclass(frozen=True, slots=True)
class PendingWrites:
    """All that is not yet durable.

    ``put_time`` notes the observed time, so that it is in every batch: no time that is in the
    database is ever ahead of it.
    """

    shelves: Sequence[DirtyTable[Any]]
    ledger: Pending
    put_time: Callable[[], None]

    def __len__(self) -> int:
        return sum(shelf.dirty() for shelf in self.shelves) + len(self.ledger)

    def take(self) -> tuple[list[Change], tuple[LedgerEntry, ...]]:
        """One moment of the memory. Ledger entries stay here until they are ``written``."""
        self.put_time()
        return [change for shelf in self.shelves for change in shelf.take()], self.ledger.all()

    def put_back(self, changes: Sequence[Change]) -> None:
        """What could not be written waits again."""
        for shelf in self.shelves:
            shelf.put_back(changes)

    def mark_all(self) -> None:
        """Everything is to be written: the database is a new one."""
        for shelf in self.shelves:
            shelf.mark_all()


async def _unsupervised(_name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await run()


class Writer:
    """Writes the backlog whenever it is woken.

    Args:
        disk: Where to.
        thread: Where the disk's work is done.
        backlog: What.
        on_trouble: Told once when writing begins to fail.
        on_recovered: Told once when it works again.
        retry: Seconds between two tries while it fails.
    """

    def __init__(
        self,
        disk: Disk,
        thread: Thread,
        backlog: PendingWrites,
        *,
        on_trouble: Callable[[StoreError], None],
        on_recovered: Callable[[], None],
        retry: float,
    ) -> None:
        self._disk = disk
        self._thread = thread
        self._backlog = backlog
        self._on_trouble = on_trouble
        self._on_recovered = on_recovered
        self._retry = retry
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._under_way = 0
        self._supervised: Supervised = _unsupervised
        self.trouble: StoreError | None = None

    def supervised_by(self, supervised: Supervised) -> None:
        """Have the background task run by this. Call it before ``start``."""
        self._supervised = supervised

    @property
    def pending(self) -> int:
        """How many rows are not yet durable, those that are being written among them."""
        return len(self._backlog) + self._under_way

    def wake(self) -> None:
        """There is something to write."""
        self._wake.set()

    def start(self) -> None:
        """Begins to write in the background."""
        if self._disk.trouble is not None:
            self._complain(self._disk.trouble)
            self.wake()
        writer = self._supervised("store-writer", self._keep_flushing)
        self._task = asyncio.create_task(writer, name="store-writer")

    async def stop(self) -> None:
        """Ends the background task. A write that runs is not waited for."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def flush(self) -> None:
        """Returns when all that waited at the call is durable.

        Raises:
            StoreError: it could not be written; it waits on and is tried again.
        """
        # Those before this one may wait for a disk that does not answer.
        with waiting(2 * WORK_LIMIT):
            await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            if not self._backlog and self.trouble is None:
                return
            try:
                await self._write()
            except StoreError as error:
                self._complain(error)
                raise
            self._be_well()

    async def _write(self) -> None:
        if await self._thread.run(self._disk.begin_anew_where_lost):
            self._backlog.mark_all()
        changes, entries = self._backlog.take()
        self._under_way = len(changes)
        try:
            await self._thread.run(self._disk.write, changes, entries)
        except BaseException:
            # Also when the caller is cancelled: to write a row twice does no harm.
            self._backlog.put_back(changes)
            raise
        finally:
            self._under_way = 0
        self._backlog.ledger.written(entries)

    async def _keep_flushing(self) -> None:
        with activity("store-writer"):
            while True:
                with waiting(math.inf):
                    await self._wake.wait()
                self._wake.clear()
                try:
                    await self.flush()
                except StoreError:
                    await asyncio.sleep(self._retry)
                    self._wake.set()

    def _complain(self, error: StoreError) -> None:
        first, self.trouble = self.trouble is None, error
        if first:
            self._on_trouble(error)

    def _be_well(self) -> None:
        before, self.trouble = self.trouble, None
        if before is not None:
            self._on_recovered()
