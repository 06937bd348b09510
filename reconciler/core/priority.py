"""Priorities of the work queue."""

from enum import IntEnum


class Priority(IntEnum):
    """Among keys that are due, the lowest priority value is reconciled first."""

    USER = 0
    EVENT = 1
    TIMER = 2
    RESYNC = 3
