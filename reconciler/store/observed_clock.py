"""Observed time: the seconds that a daemon has run on this database. All decisions use it.

It continues over restarts from the value that was saved last, and stands still while no daemon
runs. Neither the wall clock nor a suspend moves it. A gap in which the process did not run (it was
frozen, or its host was) counts for a minute at most. So no wait is shorter than intended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# A running daemon reads the clock far more often.
_LONGEST_GAP: Final = 60.0


class ObservedClock:
    """Observed seconds, which never jump and never go back.

    Args:
        saved: Observed seconds at the last write to the database; 0 for a new one.
        monotonic: Seconds that pass while this process runs, from any origin.
        wall: Seconds since the epoch, for display only.
    """

    def __init__(
        self, saved: float, *, monotonic: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._seconds = saved
        self._last = monotonic()

    def __call__(self) -> float:
        """Return the observed seconds now."""
        now = self._monotonic()
        self._seconds += min(now - self._last, _LONGEST_GAP)
        self._last = now
        return self._seconds

    def date(self, at: float) -> float:
        """Convert an observed time to seconds since the epoch, by the wall clock as it is now."""
        return self._wall() + (at - self())
