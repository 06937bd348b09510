"""Detect activities of the daemon that hang.

An activity has to make progress within ``IDLE`` seconds. While it waits for something with a time
limit, such as a call to the engine, that limit counts instead: a slow engine is no hang.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Seconds. Together with the pause between two checks this is less than three watchdog intervals.
IDLE: Final = 20.0
_SLACK: Final = 5.0


class _Activity:
    """One activity: its deadline for progress, and the deadline of each of its waits."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due = clock() + IDLE
        self._waits: dict[object, float] = {}

    def hangs(self) -> bool:
        now = self._clock()
        if self._waits:
            return any(due < now for due in self._waits.values())
        return self._due < now

    @contextmanager
    def waiting(self, limit: float) -> Iterator[None]:
        key = object()
        self._waits[key] = self._clock() + limit + _SLACK
        try:
            yield
        finally:
            del self._waits[key]
            self._due = self._clock() + IDLE


class Liveness:
    """The running activities. ``clock`` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._activities: dict[str, _Activity] = {}

    def hung(self) -> list[str]:
        """Return the names of the activities that hang."""
        return sorted(name for name, it in self._activities.items() if it.hangs())

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Track the activities of the block, and of tasks that are created in it."""
        token = _collector.set(self)
        try:
            yield
        finally:
            _collector.reset(token)

    @contextmanager
    def _activity(self, name: str) -> Iterator[None]:
        activity = self._activities[name] = _Activity(self._clock)
        token = _current.set(activity)
        try:
            yield
        finally:
            _current.reset(token)
            if self._activities.get(name) is activity:
                del self._activities[name]


_collector: ContextVar[Liveness | None] = ContextVar("collector", default=None)
_current: ContextVar[_Activity | None] = ContextVar("activity", default=None)


@contextmanager
def activity(name: str) -> Iterator[None]:
    """Track what the current task does in the block as the activity ``name``."""
    collector = _collector.get()
    with nullcontext() if collector is None else collector._activity(name):  # noqa: SLF001
        yield


@contextmanager
def waiting(limit: float) -> Iterator[None]:
    """Allow the current activity, if any, to wait in the block for ``limit`` seconds."""
    current = _current.get()
    with nullcontext() if current is None else current.waiting(limit):
        yield
