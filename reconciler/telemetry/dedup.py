"""Flood control: a repeated warning is logged once, then summed up."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


@dataclass(slots=True)
class _Incident:
    logged_at: float
    heard_at: float
    heard: int = 1
    unlogged: int = 0

    def log(self, now: float) -> int:
        repeated, self.unlogged, self.logged_at = self.unlogged, 0, now
        return repeated


class LogDeduplicator:
    """Decides which repetition of a warning is worth a log line.

    The key says what is the same: the event and what it is about, and never a text, in which an id
    may be another each time. The first warning of an incident is logged; the next are counted,
    and their count is logged once a period. An incident is over when it is resolved, or when
    nothing was heard of it for ``quiet`` seconds; what comes then is a new one.

    Args:
        clock: Monotonic seconds.
        period: Seconds between two lines about one incident.
        quiet: Seconds of silence after which an incident is over.
        limit: Incidents remembered; beyond it the one heard longest ago is forgotten, so that
            keys of deleted sandboxes do not pile up.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        period: float = 60.0,
        quiet: float = 900.0,
        limit: int = 4096,
    ) -> None:
        self._clock = clock
        self._period = period
        self._quiet = quiet
        self._limit = limit
        self._open: OrderedDict[Hashable, _Incident] = OrderedDict()

    def say(self, key: Hashable) -> int | None:
        """Note a warning, and decide whether to log it.

        Returns:
            None: log nothing. 0: the first of its incident, log it in full. N: log it as the
            summary of N repetitions, this one among them.
        """
        now = self._clock()
        incident = self._open.get(key)
        if incident is None or now - incident.heard_at > self._quiet:
            return self._begin(key, now)
        self._open.move_to_end(key)
        incident.heard_at = now
        incident.heard += 1
        incident.unlogged += 1
        return incident.log(now) if now - incident.logged_at >= self._period else None

    def resolved(self, key: Hashable) -> int:
        """End an incident: the next warning of its kind is logged in full again.

        Returns:
            How often it was heard, logged or not; 0 where there was none.
        """
        incident = self._open.pop(key, None)
        return incident.heard if incident else 0

    def __len__(self) -> int:
        return len(self._open)

    def _begin(self, key: Hashable, now: float) -> int:
        self._open[key] = _Incident(logged_at=now, heard_at=now)
        self._open.move_to_end(key)
        if len(self._open) > self._limit:
            self._open.popitem(last=False)
        return 0
