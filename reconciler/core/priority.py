"""The order in which due keys are reconciled."""

from enum import IntEnum


class Priority(IntEnum):
    """The lowest goes first among the keys that are due."""

    USER = 0
    EVENT = 1
    TIMER = 2
    RESYNC = 3
