"""The work queue: keys, each at most once, with priorities and due times."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.priority import Priority

# How many void items a heap may hold for each valid one.
_SLACK: Final = 4


@dataclass(slots=True)
class _Entry:
    priority: Priority
    due: float
    ticket: int


class WorkQueue:
    """Holds a key once, with its highest priority and its earliest due time.

    A key that is being worked on is not handed out again before ``done``; what was added meanwhile
    counts from then. ``clock`` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tickets = itertools.count()
        self._entries: dict[str, _Entry] = {}
        self._waiting: list[tuple[float, int, str]] = []
        self._ready: list[tuple[Priority, float, int, str]] = []
        self._active: set[str] = set()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._entries)

    def idle(self, horizon: float) -> bool:
        """Whether nothing is being worked on, nor due within ``horizon`` seconds."""
        soon = self._clock() + horizon
        return not self._active and all(entry.due > soon for entry in self._entries.values())

    def add(self, key: str, priority: Priority, delay: float = 0.0) -> None:
        """Ask for the key to be worked on, ``delay`` seconds from now."""
        due = self._clock() + max(delay, 0.0)
        entry = self._entries.get(key)
        if entry is not None and entry.priority <= priority and entry.due <= due:
            return
        if entry is not None:
            priority, due = min(entry.priority, priority), min(entry.due, due)
        self._put(key, priority, due)

    def _put(self, key: str, priority: Priority, due: float) -> None:
        # An entry's ticket makes what the heaps hold of its former self void.
        ticket = next(self._tickets)
        self._entries[key] = _Entry(priority, due, ticket)
        if key not in self._active:
            self._await_turn(key)

    def _await_turn(self, key: str) -> None:
        if len(self._waiting) > _SLACK * (1 + len(self._entries)):
            self._waiting = [it for it in self._waiting if self._is_valid(it[2], it[1])]
            heapq.heapify(self._waiting)
        entry = self._entries[key]
        heapq.heappush(self._waiting, (entry.due, entry.ticket, key))
        self._changed.set()

    def done(self, key: str) -> None:
        """The key's worker has ended."""
        self._active.discard(key)
        if key in self._entries:
            self._await_turn(key)

    async def get(self) -> str:
        """The next key that is due; it is the caller's until ``done``."""
        while True:
            self._changed.clear()
            key = self._take()
            if key is not None:
                return key
            await self._wait()

    def _take(self) -> str | None:
        self._promote()
        while self._ready:
            _, _, ticket, key = heapq.heappop(self._ready)
            if self._is_valid(key, ticket):
                del self._entries[key]
                self._active.add(key)
                return key
        return None

    def _promote(self) -> None:
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now:
            due, ticket, key = heapq.heappop(self._waiting)
            if self._is_valid(key, ticket):
                entry = self._entries[key]
                heapq.heappush(self._ready, (entry.priority, due, ticket, key))

    def _is_valid(self, key: str, ticket: int) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.ticket == ticket and key not in self._active

    async def _wait(self) -> None:
        delay = self._waiting[0][0] - self._clock() if self._waiting else None
        try:
            async with asyncio.timeout(delay):
                await self._changed.wait()
        except TimeoutError:
            return
