"""Blocking calls on files, in daemon threads, each with a time limit.

A file system can hang: a network mount whose server is gone, a FUSE mount whose process does not
answer. The call then never returns. Here it blocks one thread, which nothing waits for, also not
the end of the process.
"""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from reconciler.progress import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K", bound="Hashable")

# Seconds.
FILE_LIMIT: Final = 10.0
# Calls of ``each`` that may hang at once; the shipped unit allows 256 threads and processes.
MAX_HUNG: Final = 64


class DaemonThreads(ThreadPoolExecutor):
    """Runs each call in a daemon thread. Neither a loop's end nor the process's waits for one.

    A pool only by name: a loop takes no other kind as its default executor.
    """

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Start the call.

        Raises:
            OSError: no thread can be started.
        """
        future: Future[R] = Future()
        thread = threading.Thread(
            target=_settle, args=(future, partial(fn, *args, **kwargs)), daemon=True, name="file"
        )
        _begin(thread)
        return future

    def shutdown(self, *_: object, **__: object) -> None:
        """Wait for nothing."""


class SerialThread(Executor):
    """Runs calls one after the other, in one daemon thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have the call done after those before it.

        Raises:
            OSError: the thread cannot be started.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._work, daemon=True, name=self._name)
            _begin(thread)
            self._thread = thread
        future: Future[R] = Future()
        self._calls.put(partial(_settle, future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, *_: object, **__: object) -> None:
        """Let the thread end after what it has to do; waits for nothing."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _begin(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "no more threads can be started") from error


def _settle(future: Future[R], call: Callable[[], R]) -> None:
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - it is raised where the call is awaited
        future.set_exception(error)
    else:
        future.set_result(result)


_DAEMON_THREADS: Final = DaemonThreads()


async def in_thread(call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a call that takes a bounded time, such as parsing, in a daemon thread.

    Raises:
        OSError: no thread can be started.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_DAEMON_THREADS, partial(call, *args, **kwargs))


class BoundedCalls:
    """Runs blocking calls with a time limit, at most one at a time for each key (such as a path).

    A call that exceeds the limit is hung: until it returns, further calls for its key fail at once.

    Args:
        limit: Seconds that one call may take.
    """

    def __init__(self, limit: float = FILE_LIMIT) -> None:
        self._limit = limit
        self._running: dict[Hashable, asyncio.Future[Any]] = {}
        self._hung: set[Hashable] = set()

    @property
    def hung(self) -> frozenset[Hashable]:
        """The keys whose call has exceeded the limit and has not returned."""
        return frozenset(self._hung)

    async def run(
        self, key: Hashable, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run one call.

        Raises:
            TimeoutError: it did not return within the limit, or an earlier one has not yet.
            OSError: no thread can be started.
        """
        former = self._running.get(key)
        if former is not None:
            await self._wait(key, former)
        future = self._start(key, partial(call, *args, **kwargs))
        await self._wait(key, future)
        return future.result()

    async def each(self, keys: Iterable[K], call: Callable[[K], R]) -> dict[K, R | OSError]:
        """Run the call for each key. One thread does all, unless a call hangs.

        Returns:
            Each key's result, or the OSError that the call raised or that says that it hangs.
        """
        found: dict[K, R | OSError] = {key: _timed_out(self._limit) for key in keys}
        if len(self._hung) >= 2 * MAX_HUNG:
            return found | {key: _not_tried() for key in found if key not in self._hung}
        free = [key for key in found if key not in self._running]
        walk = _Walk(free, call)
        if free:
            await self._follow(walk)
        found |= walk.results
        rest = [key for key in found if key not in self._hung and key not in walk.results]
        while rest and (room := MAX_HUNG - len(self._hung)) > 0:
            batch, rest = rest[:room], rest[room:]
            alone = (self._one(key, call) for key in batch)
            found |= zip(batch, await asyncio.gather(*alone), strict=True)
        return found | {key: _not_tried() for key in rest}

    async def _one(self, key: K, call: Callable[[K], R]) -> R | OSError:
        try:
            return await self.run(key, call, key)
        except OSError as error:
            return error

    async def _follow(self, walk: _Walk[K, R]) -> None:
        """Wait until the walk is over, or hangs at one key."""
        try:
            future = self._start(walk, walk.run)
        except OSError as error:
            walk.results |= dict.fromkeys(walk.keys, error)
            return
        try:
            while (left := walk.began + self._limit - time.monotonic()) > 0:
                with waiting(left):
                    await asyncio.wait({future}, timeout=left)
                if future.done():
                    # A defect of the call is raised here.
                    future.result()
                    return
        finally:
            walk.abandoned = True
        if walk.current is not None:
            self._running[walk.current] = future
            self._hung.add(walk.current)
            future.add_done_callback(partial(self._end, walk.current))

    def _start(self, key: Hashable, call: Callable[[], R]) -> asyncio.Future[R]:
        future = asyncio.get_running_loop().run_in_executor(_DAEMON_THREADS, call)
        self._running[key] = future
        future.add_done_callback(partial(self._end, key))
        return future

    async def _wait(self, key: Hashable, future: asyncio.Future[Any]) -> None:
        if key not in self._hung:
            with waiting(self._limit):
                await asyncio.wait({future}, timeout=self._limit)
        if not future.done():
            self._hung.add(key)
            raise _timed_out(self._limit)

    def _end(self, key: Hashable, future: asyncio.Future[Any]) -> None:
        self._hung.discard(key)
        if self._running.get(key) is future:
            del self._running[key]
        if not future.cancelled():
            # Nothing may wait for it any more; an exception that nobody asks for is logged.
            future.exception()


class _Walk(Generic[K, R]):
    """One thread's way through several calls. ``current`` is the key that it is at."""

    def __init__(self, keys: list[K], call: Callable[[K], R]) -> None:
        self.keys = keys
        self.results: dict[K, R | OSError] = {}
        self.current: K | None = None
        self.began = time.monotonic()
        self.abandoned = False
        self._call = call

    def run(self) -> None:
        for key in self.keys:
            if self.abandoned:
                return
            self.current, self.began = key, time.monotonic()
            try:
                result: R | OSError = self._call(key)
            except OSError as error:
                result = error
            if not self.abandoned:
                self.results[key] = result


def _not_tried() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"not tried: {MAX_HUNG} other files do not answer")


def _timed_out(limit: float) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"no answer within {limit:g} s; its disk or mount hangs")
