"""Wait for a condition, never for a length of time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# Seconds: more than anything takes on a busy machine, and less than a test's limit.
PATIENCE = 90
_POLL = 0.03


def wait_until(
    predicate: Callable[[], T], timeout: float = PATIENCE, explain: Callable[[], str] = str
) -> T:
    """Return the predicate's first true value; fail with an explanation when none comes."""
    end = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > end:
            raise AssertionError(f"not so within {timeout} s: {predicate}\n{explain()}")
        time.sleep(_POLL)
    return value
