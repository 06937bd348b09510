"""Background writer: write dirty rows in one transaction; retry on failure."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from reconciler.core.errors import StoreError
from reconciler.liveness import activity, waiting
from reconciler.threads import SerialThread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from reconciler.store.sqlite import Database
    from reconciler.store.table import PendingWrites

    Supervise = Callable[[str, Callable[[], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]]

P = ParamSpec("P")
R = TypeVar("R")

# Seconds. A large batch on a slow disk takes a few.
WORK_LIMIT: Final = 30.0


class DatabaseWorker:
    """The one thread that uses the database: SQLite may block, the event loop may not.

    Args:
        path: The state directory, for error messages.
        limit: Seconds that one call may take; a longer one means that the disk hangs.
    """

    def __init__(self, path: Path, limit: float = WORK_LIMIT) -> None:
        self._path = path
        self._limit = limit
        self._executor = SerialThread("store")
        self._hung: asyncio.Future[Any] | None = None

    async def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``work`` in the thread. A cancelled caller leaves it running to its end.

        Raises:
            StoreError: it takes too long, or earlier work hangs.
        """
        if self._hung is not None and not self._hung.done():
            raise self._timeout()
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._executor, lambda: work(*args, **kwargs))
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from error
        # If no caller waits any more, asyncio would log an exception that nobody retrieved.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        with waiting(self._limit):
            await asyncio.wait({future}, timeout=self._limit)
        if not future.done():
            self._hung = future
            raise self._timeout()
        return future.result()

    def hurry(self, limit: float) -> None:
        """Limit every further call to ``limit`` seconds, because the process ends."""
        self._limit = limit

    def end(self) -> None:
        """Let the thread end after its current work."""
        self._executor.shutdown()

    def _timeout(self) -> StoreError:
        return StoreError(
            f"{self._path}: its disk does not answer within {self._limit:g} s: check the disk or"
            " the mount; nothing is made durable until it answers"
        )


class Writer:
    """Writes what is pending whenever it is woken.

    Args:
        database: Where to write.
        worker: The thread of the database.
        pending: What to write.
        on_trouble: Called once when writing begins to fail.
        on_recovered: Called once when it works again.
        retry: Seconds between two attempts while it fails.
    """

    def __init__(
        self,
        database: Database,
        worker: DatabaseWorker,
        pending: PendingWrites,
        *,
        on_trouble: Callable[[StoreError], None],
        on_recovered: Callable[[], None],
        retry: float,
    ) -> None:
        self._database = database
        self._worker = worker
        self._pending = pending
        self._on_trouble = on_trouble
        self._on_recovered = on_recovered
        self._retry = retry
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._under_way = 0
        self._supervise: Supervise = lambda _name, run: run()
        self.trouble: StoreError | None = None

    def supervised_by(self, supervise: Supervise) -> None:
        """Run the background task under this supervisor. Call it before ``start``."""
        self._supervise = supervise

    @property
    def pending(self) -> int:
        """The number of rows that are not yet durable, including those being written."""
        return len(self._pending) + self._under_way

    def wake(self) -> None:
        """Have the pending rows written soon."""
        self._wake.set()

    def start(self) -> None:
        """Begin to write in the background."""
        if self._database.trouble is not None:
            self._report(self._database.trouble)
            self.wake()
        writer = self._supervise("store-writer", self._keep_flushing)
        self._task = asyncio.create_task(writer, name="store-writer")

    async def stop(self) -> None:
        """End the background task, without waiting for a write that runs."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def flush(self) -> None:
        """Return when everything that was pending at the call is durable.

        Raises:
            StoreError: it could not be written; it stays pending and is retried.
        """
        # Earlier callers may still wait for a disk that does not answer.
        with waiting(2 * WORK_LIMIT):
            async with self._writing:
                if not self._pending and self.trouble is None:
                    return
                try:
                    await self._write()
                except StoreError as error:
                    self._report(error)
                    raise
                if self.trouble is not None:
                    self.trouble = None
                    self._on_recovered()

    async def _write(self) -> None:
        if await self._worker.run(self._database.recreate_where_lost):
            self._pending.mark_all()
        changes, entries = self._pending.take()
        self._under_way = len(changes)
        try:
            await self._worker.run(self._database.write, changes, entries)
        except BaseException:
            # Also when the caller is cancelled: writing a row twice does no harm.
            self._pending.put_back(changes)
            raise
        finally:
            self._under_way = 0
        self._pending.ledger.written(entries)

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

    def _report(self, error: StoreError) -> None:
        first, self.trouble = self.trouble is None, error
        if first:
            self._on_trouble(error)
