"""Event loop in simulated time: when nothing is ready, the clock jumps to the next timer.

Hours pass in milliseconds, and in the same order each time. Work in threads (the store, files) is
waited for in real time, and no simulated time passes meanwhile.
"""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

EPOCH = 1_750_000_000.0


class Deadlock(RuntimeError):
    """No timer and no thread is left: nothing can happen any more."""


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.in_threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.in_threads:
            return super().select(None)
        if timeout is None:
            raise Deadlock
        self.now += timeout
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """``time()`` is simulated, and so is every sleep and timeout."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        # Timers that lie closer together than this are run in one turn.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        self._jumping.in_threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._leave_thread)
        return future

    async def shutdown_default_executor(self, *timeout: float | None) -> None:  # type: ignore[override]
        """Wait for the threads in real time; Python 3.12 and newer pass a timeout."""
        self._jumping.in_threads += 1
        await super().shutdown_default_executor(*timeout)
        self._jumping.in_threads -= 1

    def _leave_thread(self, _future: asyncio.Future[Any]) -> None:
        self._jumping.in_threads -= 1


class SimulatedClock:
    """Seconds from an origin, as they pass in the loop, plus jumps on request."""

    def __init__(self, origin: float = EPOCH) -> None:
        self._loop = asyncio.get_running_loop()
        self._ahead = origin

    def __call__(self) -> float:
        return self._ahead + self._loop.time()

    def jump(self, seconds: float) -> None:
        self._ahead += seconds
