"""Hands keys from the queue to workers: one worker a key, at most so many at once."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Final

from reconciler.core.priority import Priority
from reconciler.progress import activity, waiting
from reconciler.telemetry.supervision import is_cancelled, log_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from reconciler.reconcile.queue import WorkQueue
    from reconciler.telemetry.recorder import Recorder

_AFTER_A_DEFECT: Final = 10.0


class Workers:
    """Works only while ``ready`` is set: without a full observation nothing is decided."""

    def __init__(
        self,
        queue: WorkQueue,
        *,
        reconcile: Callable[[str], Awaitable[None]],
        ready: asyncio.Event,
        workers: int,
        recorder: Recorder,
    ) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._ready = ready
        self._workers = workers
        self._recorder = recorder

    async def run(self) -> None:
        """Hand out keys until cancelled; the workers end with this task."""
        slots = asyncio.Semaphore(self._workers)
        with activity("dispatcher"):
            async with asyncio.TaskGroup() as workers:
                while True:
                    key = await self._next(slots)
                    worker = workers.create_task(self._work(key), name=f"reconcile {key}")
                    # Not in the worker itself, which may be cancelled before it begins.
                    worker.add_done_callback(partial(self._done, key, slots))

    async def _next(self, slots: asyncio.Semaphore) -> str:
        with waiting(math.inf):
            await slots.acquire()
            key = await self._queue.get()
            try:
                # Last, because the wait for a key may be long: readiness may be gone since.
                await self._ready.wait()
            except BaseException:
                self._give_back(key)
                raise
        return key

    async def _work(self, key: str) -> None:
        try:
            with activity(f"reconcile {key}"):
                await self._reconcile(key)
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            self._fail(key, error)
        except Exception as error:  # noqa: BLE001 - a defect in one pass must not end the others
            self._fail(key, error)

    def _done(self, key: str, slots: asyncio.Semaphore, _worker: asyncio.Task[None]) -> None:
        self._queue.done(key)
        slots.release()

    def _fail(self, key: str, error: BaseException) -> None:
        log_failure(f"reconcile {key}", error, self._recorder, _AFTER_A_DEFECT)
        self._queue.add(key, Priority.TIMER, _AFTER_A_DEFECT)

    def _give_back(self, key: str) -> None:
        self._queue.add(key, Priority.TIMER, _AFTER_A_DEFECT)
        self._queue.done(key)
