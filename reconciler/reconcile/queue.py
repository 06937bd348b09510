"""Work queue of keys, each at most once, with priorities and due times."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.priority import Priority

# Stale items that the heap may hold for each valid one.
_SLACK: Final = 4


@dataclass(slots=True)
class _Entry:
    priority: Priority
    due: float
    ticket: int


class WorkQueue:
    """Holds a key once, with its highest priority and its earliest due time.

    A key that was handed out is not handed out again before ``done``, even if it is added
    meanwhile. ``clock`` is monotonic, in seconds.
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
        """Whether no key is handed out or due within ``horizon`` seconds."""
        soon = self._clock() + horizon
        return not self._active and all(entry.due > soon for entry in self._entries.values())

    def add(self, key: str, priority: Priority, delay: float = 0.0) -> None:
        """Add the key, due in ``delay`` seconds."""
        due = self._clock() + max(delay, 0.0)
        entry = self._entries.get(key)
        if entry is not None and entry.priority <= priority and entry.due <= due:
            return
        if entry is not None:
            priority, due = min(entry.priority, priority), min(entry.due, due)
        # The new ticket makes older heap items of the key stale.
        self._entries[key] = _Entry(priority, due, next(self._tickets))
        if key not in self._active:
            self._push(key)

    def _push(self, key: str) -> None:
        if len(self._waiting) > _SLACK * (1 + len(self._entries)):
            self._waiting = [it for it in self._waiting if self._is_valid(it[2], it[1])]
            heapq.heapify(self._waiting)
        entry = self._entries[key]
        heapq.heappush(self._waiting, (entry.due, entry.ticket, key))
        self._changed.set()

    def done(self, key: str) -> None:
        """Give the key back; it may be handed out again."""
        self._active.discard(key)
        if key in self._entries:
            self._push(key)

    async def get(self) -> str:
        """Wait for the next key that is due, and hand it out until ``done``."""
        while True:
            self._changed.clear()
            if (key := self.get_nowait()) is not None:
                return key
            delay = self._waiting[0][0] - self._clock() if self._waiting else None
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._changed.wait()

    def get_nowait(self) -> str | None:
        """Hand out the next key that is due; return None if no key is."""
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now:
            due, ticket, key = heapq.heappop(self._waiting)
            if self._is_valid(key, ticket):
                entry = self._entries[key]
                heapq.heappush(self._ready, (entry.priority, due, ticket, key))
        while self._ready:
            _, _, ticket, key = heapq.heappop(self._ready)
            if self._is_valid(key, ticket):
                del self._entries[key]
                self._active.add(key)
                return key
        return None

    def _is_valid(self, key: str, ticket: int) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.ticket == ticket and key not in self._active
