"""A repeated warning costs one line and one summary a period, for each incident."""

import pytest

from reconciler.telemetry.dedup import LogDeduplicator


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def deduplicator(clock):
    return LogDeduplicator(clock, period=60.0, quiet=900.0, limit=3)


# Each step: seconds since the step before, and what count() returns.
@pytest.mark.parametrize(
    "steps",
    [
        [(0, 0)],
        [(0, 0), (1, None), (1, None)],
        [(0, 0), (60, 1)],
        [(0, 0), (59.9, None), (0.1, 2)],
        [(0, 0), (30, None), (30, 2), (30, None), (30, 2)],
        [(0, 0), (899, 1), (1, None)],
        [(0, 0), (1, None), (901, 0), (1, None), (60, 2)],
        [(0, 0), (86400, 0), (1, None)],
        [(0, 0), (-500, None), (560, 2)],
    ],
)
def test_a_warning_is_logged_once_then_counted(clock, deduplicator, steps):
    for pause, expected in steps:
        clock.now += pause
        assert deduplicator.count("lost") == expected


def test_keys_are_counted_apart(deduplicator):
    assert deduplicator.count(("alice", "died")) == 0
    assert deduplicator.count(("bob", "died")) == 0
    assert deduplicator.count(("alice", "died")) is None


def test_resolve_returns_the_count_and_ends_the_incident(clock, deduplicator):
    for _ in range(5):
        deduplicator.count("lost")
    assert deduplicator.resolve("lost") == 5
    assert deduplicator.resolve("lost") == 0
    assert deduplicator.count("lost") == 0


def test_a_flood_costs_one_line_a_period(clock, deduplicator):
    lines = 0
    for _ in range(36_000):
        lines += deduplicator.count("lost") is not None
        clock.now += 0.1
    assert 59 <= lines <= 61


def test_memory_is_bounded_and_the_oldest_is_dropped(deduplicator):
    for key in "abc":
        deduplicator.count(key)
    deduplicator.count("a")
    deduplicator.count("d")
    assert len(deduplicator) == 3
    assert deduplicator.count("a") is None
    assert deduplicator.count("b") == 0
