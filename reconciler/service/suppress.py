"""Flood control: the same complaint is said once, then summed up."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class _Complaint:
    said_at: float
    heard: int = 1
    unsaid: int = 0

    def say(self, now: float) -> int:
        repeated, self.unsaid, self.said_at = self.unsaid, 0, now
        return repeated


class Complaints:
    """Decides which repetition of a complaint is worth a log line.

    The key says what is the same: ``("engine", "lost")``, ``(sandbox, reason)``. The first one is
    said; the next are counted, and their count is said once a period.

    Args:
        clock: Monotonic seconds.
        period: Seconds between two lines about one complaint.
        limit: Complaints remembered; beyond it the one heard longest ago is forgotten, so that
            keys of deleted sandboxes do not pile up.
    """

    def __init__(self, clock: Callable[[], float], period: float = 60.0, limit: int = 4096) -> None:
        self._clock = clock
        self._period = period
        self._limit = limit
        self._open: OrderedDict[Hashable, _Complaint] = OrderedDict()

    def say(self, key: Hashable) -> int | None:
        """Notes a complaint and says whether to log it.

        Returns:
            None: log nothing. 0: the first of its kind, log it in full. N: log it as the summary of
            N repetitions, this one among them.
        """
        now = self._clock()
        complaint = self._open.get(key)
        if complaint is None:
            return self._begin(key, now)
        self._open.move_to_end(key)
        complaint.heard += 1
        complaint.unsaid += 1
        return complaint.say(now) if self._is_due(complaint, now) else None

    def resolved(self, key: Hashable) -> int:
        """Ends a complaint: the next one of its kind is said in full again.

        Returns:
            How often it was heard, said or not; 0 where nobody complained.
        """
        complaint = self._open.pop(key, None)
        return complaint.heard if complaint else 0

    def __len__(self) -> int:
        return len(self._open)

    def _begin(self, key: Hashable, now: float) -> int:
        self._open[key] = _Complaint(said_at=now)
        if len(self._open) > self._limit:
            self._open.popitem(last=False)
        return 0

    def _is_due(self, complaint: _Complaint, now: float) -> bool:
        return now - complaint.said_at >= self._period
