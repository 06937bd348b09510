"""Hands keys from the queue to workers: one worker a key, at most so many at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from reconciler.loop.queue import Priority
from reconciler.service.supervision import is_cancelled, log_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from reconciler.loop.queue import WorkQueue
    from reconciler.loop.reporter import Reporter

_HEARTBEAT: Final = 5.0
_AFTER_A_DEFECT: Final = 10.0


class Dispatcher:
    """Works only while ``ready`` is set: without a full observation nothing is decided.

    ``longest_pass`` (seconds) is how long one pass can take when every call in it runs into its
    timeout; one that takes longer hangs, and then the watchdog must not be fed.
    """

    def __init__(
        self,
        queue: WorkQueue,
        *,
        reconcile: Callable[[str], Awaitable[None]],
        ready: asyncio.Event,
        workers: int,
        clock: Callable[[], float],
        longest_pass: float,
        reporter: Reporter,
    ) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._ready = ready
        self._workers = workers
        self._clock = clock
        self._longest_pass = longest_pass
        self._reporter = reporter
        self._began: dict[str, float] = {}
        self._beat = clock()

    @property
    def makes_progress(self) -> bool:
        """Whether the dispatcher takes its turns and no pass hangs."""
        now = self._clock()
        turns = now - self._beat < 3 * _HEARTBEAT
        return turns and all(now - began < self._longest_pass for began in self._began.values())

    async def run(self) -> None:
        """Hand out keys until cancelled; the workers end with this task."""
        slots = asyncio.Semaphore(self._workers)
        async with asyncio.TaskGroup() as workers:
            while True:
                await self._beating(slots.acquire)
                key = await self._beating(self._queue.get)
                try:
                    # Last, because the wait for a key may be long: readiness may be gone since.
                    await self._beating(self._ready.wait)
                except BaseException:
                    self._give_back(key)
                    raise
                workers.create_task(self._work(key, slots), name=f"reconcile {key}")

    async def _beating(self, wait: Callable[[], Awaitable[str | bool]]) -> str:
        """Wait for something, and show meanwhile that this task is alive."""
        waiting = asyncio.ensure_future(wait())
        try:
            while True:
                self._beat = self._clock()
                done, _ = await asyncio.wait({waiting}, timeout=_HEARTBEAT)
                if done:
                    return str(waiting.result())
        finally:
            waiting.cancel()

    async def _work(self, key: str, slots: asyncio.Semaphore) -> None:
        self._began[key] = self._clock()
        try:
            await self._reconcile(key)
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            self._fail(key, error)
        except Exception as error:  # noqa: BLE001 - a defect in one pass must not end the others
            self._fail(key, error)
        finally:
            del self._began[key]
            self._queue.done(key)
            slots.release()

    def _fail(self, key: str, error: BaseException) -> None:
        log_failure(f"reconcile {key}", error, self._reporter, _AFTER_A_DEFECT)
        self._queue.add(key, Priority.TIMER, _AFTER_A_DEFECT)

    def _give_back(self, key: str) -> None:
        self._queue.add(key, Priority.TIMER, _AFTER_A_DEFECT)
        self._queue.done(key)
