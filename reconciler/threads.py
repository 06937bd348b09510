"""Run blocking file calls in daemon threads, each with a time limit.

A file system can hang: a network mount without its server, a FUSE mount without its process. A call
then never returns. Here it blocks one thread, and neither the event loop nor the exit of the
process waits for that thread.
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

from reconciler.liveness import waiting

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
    """Runs each call in a new daemon thread, which nothing waits for at exit.

    It is no pool, but an event loop accepts only this type as its default executor.
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
        """Queue the call behind those before it.

        Raises:
            OSError: the thread cannot be started.
        """
        if self._thread is None:

            def work() -> None:
                while (call := self._calls.get()) is not None:
                    call()

            thread = threading.Thread(target=work, daemon=True, name=self._name)
            _begin(thread)
            self._thread = thread
        future: Future[R] = Future()
        self._calls.put(partial(_settle, future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, *_: object, **__: object) -> None:
        """End the thread after the queued calls; do not wait for it."""
        self._calls.put(None)


def _begin(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "no more threads can be started") from error


def _settle(future: Future[R], call: Callable[[], R]) -> None:
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - raised where the call is awaited
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
        """Run the call for each key, in one thread unless a call hangs.

        Returns:
            Each key's result, or the OSError of the call, a TimeoutError if it hangs.
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
            alone = (self.run(key, call, key) for key in batch)
            results = await asyncio.gather(*alone, return_exceptions=True)
            for key, result in zip(batch, results, strict=True):
                if isinstance(result, BaseException) and not isinstance(result, OSError):
                    raise result
                found[key] = result
        return found | {key: _not_tried() for key in rest}

    async def _follow(self, walk: _Walk[K, R]) -> None:
        """Wait until the walk ends, or one of its calls hangs."""
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
            # asyncio would log an exception that is never retrieved.
            future.exception()


class _Walk(Generic[K, R]):
    """Several calls in one thread. ``current`` is the key of the running call."""

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
    return TimeoutError(errno.ETIMEDOUT, f"not tried: {MAX_HUNG} other file calls hang")


def _timed_out(limit: float) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"no answer within {limit:g} s; check its disk or mount")
