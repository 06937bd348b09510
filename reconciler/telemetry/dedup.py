"""Log a repeated warning once, and then its number of repetitions once a period."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


@dataclass(slots=True)
class _Incident:
    logged_at: float
    seen_at: float
    seen: int = 1
    unlogged: int = 0


class LogDeduplicator:
    """Decides which repetition of a warning is worth a log line.

    A key identifies a warning: the event and its subject, but no text, since an id in a text may
    differ each time. The first warning of an incident is logged; the next are counted, and the
    count is logged once a period. An incident is over when it is resolved, or after ``quiet``
    seconds without a warning; the next warning begins a new one.

    Args:
        clock: Monotonic seconds.
        period: Seconds between two lines about one incident.
        quiet: Seconds of silence after which an incident is over.
        limit: Incidents remembered; beyond it the one seen longest ago is forgotten, so that keys
            of deleted sandboxes do not accumulate.
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

    def count(self, key: Hashable) -> int | None:
        """Count a warning, and decide whether to log it.

        Returns:
            None: log nothing. 0: the first of its incident, log it in full. N: log it as the
            summary of N repetitions, including this one.
        """
        now = self._clock()
        incident = self._open.get(key)
        if incident is None or now - incident.seen_at > self._quiet:
            self._open[key] = _Incident(logged_at=now, seen_at=now)
            self._open.move_to_end(key)
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
            return 0
        self._open.move_to_end(key)
        incident.seen_at = now
        incident.seen += 1
        incident.unlogged += 1
        if now - incident.logged_at < self._period:
            return None
        repeated, incident.unlogged, incident.logged_at = incident.unlogged, 0, now
        return repeated

    def resolve(self, key: Hashable) -> int:
        """End an incident: the next warning of its kind is logged in full again.

        Returns:
            The number of its warnings, logged or not; 0 if there is no incident.
        """
        incident = self._open.pop(key, None)
        return incident.seen if incident else 0

    def __len__(self) -> int:
        return len(self._open)
