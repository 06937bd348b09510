"""Reconcile the keys of the queue: each key by one worker at a time, up to a number in parallel."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reconciler.core.priority import Priority
from reconciler.liveness import activity, waiting
from reconciler.telemetry.supervision import is_cancelled, log_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from reconciler.reconcile.queue import WorkQueue
    from reconciler.telemetry.recorder import Recorder

# Seconds until a key is reconciled again after a pass raised an unexpected exception.
_RETRY_AFTER_BUG: Final = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of one pass. ``requeue_after`` is in seconds; None: only an event brings it back."""

    requeue_after: float | None = None


class Workers:
    """Reconcile keys while ``ready`` is set: nothing is decided without a full observation."""

    def __init__(
        self,
        queue: WorkQueue,
        *,
        reconcile: Callable[[str], Awaitable[Result]],
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
        """Reconcile keys until cancelled; passes under way are cancelled too."""
        slots = asyncio.Semaphore(self._workers)
        with activity("workers"):
            async with asyncio.TaskGroup() as workers:
                while True:
                    with waiting(math.inf):
                        await slots.acquire()
                        key = await self._queue.get()
                        try:
                            # Checked last: readiness may end during a long wait for a key.
                            await self._ready.wait()
                        except BaseException:
                            self._queue.add(key, Priority.TIMER, _RETRY_AFTER_BUG)
                            self._queue.done(key)
                            raise

                    def give_back(_: asyncio.Task[None], key: str = key) -> None:
                        self._queue.done(key)
                        slots.release()

                    worker = workers.create_task(self._work(key), name=f"reconcile {key}")
                    # Not in the task, which may be cancelled before it begins.
                    worker.add_done_callback(give_back)

    async def _work(self, key: str) -> None:
        try:
            with activity(f"reconcile {key}"):
                result = await self._reconcile(key)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            # A bug in one pass must not end the others.
            log_failure(f"reconcile {key}", error, self._recorder, _RETRY_AFTER_BUG)
            result = Result(_RETRY_AFTER_BUG)
        if result.requeue_after is not None:
            self._queue.add(key, Priority.TIMER, result.requeue_after)
