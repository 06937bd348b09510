from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.health import Health, Verdict
from reconciler.core.observed import Container, Phase
from reconciler.core.restart import (
    Death,
    End,
    Run,
    SandboxMemory,
    after_death,
    after_look,
    after_own_stop,
    after_restart,
    after_run,
    after_start,
    backoff,
    is_accounted,
    is_crash_loop_reported,
    is_end_of_engine,
    is_own_stop,
    unhealthy_restart_due,
)
from reconciler.core.spec import RestartSpec
from tests.core.builders import NAME, NOW, container

RESTART = RestartSpec.model_validate({"backoff": "1s", "max_backoff": "60s", "reset_after": "10m"})


steady = settings(derandomize=True, deadline=None, database=None)


@steady
@given(st.integers(1, 10**6), st.text())
def test_backoff_doubles_to_a_cap_with_jitter(streak, key):
    whole = min(2.0 ** min(streak - 1, 100), 60.0)
    assert 0.9 * whole <= backoff(1.0, 60.0, streak, key) <= whole


def test_the_first_try_is_immediate_and_keys_differ():
    assert backoff(1.0, 60.0, 0, "a") == 0.0
    assert backoff(1.0, 60.0, 5, "a") != backoff(1.0, 60.0, 5, "b")
    assert backoff(1.0, 60.0, 5, "a") == backoff(1.0, 60.0, 5, "a")


EXITED = container(NAME, Phase.EXITED)


def died(after: float, memory: SandboxMemory, ended: Container = EXITED) -> SandboxMemory:
    """Return the memory after a death; the daemon saw the run for ``after`` seconds."""
    run = Run(ended.id, ended.started_at, NOW - after)
    death = Death(ended.id, NOW, 1, oom_killed=False)
    return after_death(replace(memory, run=run), ended, death, RESTART, "alice")


def test_a_first_death_is_restarted_at_once_and_later_ones_wait():
    first = died(5, SandboxMemory())
    assert (first.ended, first.not_before) == (End.of(EXITED), NOW)
    second = died(5, after_restart(first))
    assert (second.restarts, second.streak) == (1, 1)
    assert 0.9 <= second.not_before - NOW <= 1.0


def test_a_stable_run_ends_the_streak():
    assert died(600, SandboxMemory(restarts=9, streak=9)).streak == 0
    assert died(599, SandboxMemory(restarts=9, streak=9)).streak == 9


@pytest.mark.parametrize("started_at", [None, 0.0, NOW - 1e9, NOW + 1e9])
def test_an_unseen_run_is_not_stable(started_at):
    ended = container(NAME, Phase.EXITED, started_at=started_at)
    death = Death(ended.id, NOW, 1, oom_killed=False)
    memory = after_death(SandboxMemory(streak=2), ended, death, RESTART, "alice")
    assert memory.streak == 2


def test_a_run_begins_when_it_is_first_seen():
    runs = container(started_at=12.0)
    first = after_look(SandboxMemory(), runs, NOW)
    assert first.run == Run(runs.id, 12.0, NOW)
    assert after_look(first, runs, NOW + 5) is first
    another = replace(runs, started_at=13.0)
    assert after_look(first, another, NOW + 5).run == Run(runs.id, 13.0, NOW + 5)


def test_without_dates_a_run_after_an_end_is_another_run():
    ended = container(NAME, Phase.EXITED, started_at=None, finished_at=None)
    memory = died(700, SandboxMemory(), ended)
    assert is_accounted(memory, ended)
    runs = replace(ended, phase=Phase.RUNNING)
    again = after_look(memory, runs, NOW + 1)
    assert (again.run.seen_at, again.ended) == (NOW + 1, None)


def test_an_equal_end_after_a_start_is_another_end():
    memory = died(5, SandboxMemory())
    assert is_accounted(memory, EXITED)
    assert not is_accounted(after_start(memory), EXITED)


@pytest.mark.parametrize("change", [{"id": "c9"}, {"finished_at": None}, {"started_at": 1.0}])
def test_ends_with_other_dates_are_different_ends(change):
    assert not is_accounted(died(5, SandboxMemory()), replace(EXITED, **change))


def test_a_changed_exit_code_is_not_another_end():
    assert is_accounted(died(5, SandboxMemory()), replace(EXITED, exit_code=128))


def test_without_an_end_date_the_exit_code_identifies_an_end():
    undated = replace(EXITED, finished_at=None)
    memory = replace(SandboxMemory(), ended=End.of(undated))
    assert is_accounted(memory, undated)
    assert not is_accounted(memory, replace(undated, exit_code=9))


def test_a_stop_by_the_daemon_is_no_death():
    memory = after_own_stop(SandboxMemory(streak=3, not_before=NOW + 9), EXITED)
    assert memory == SandboxMemory(streak=3, ended=End.of(EXITED), not_before=None)
    assert is_own_stop(memory, EXITED)
    assert not is_own_stop(died(5, memory), EXITED)


@pytest.mark.parametrize(
    ("exit_code", "oom", "watched", "expected"),
    [
        (255, False, False, True),
        (255, False, True, False),
        (143, False, False, True),
        (137, False, False, True),
        (0, False, False, True),
        (137, True, False, False),
        (1, False, False, False),
        (139, False, False, False),
    ],
)
def test_exits_that_an_ending_engine_causes(exit_code, oom, watched, expected):
    ended = replace(EXITED, exit_code=exit_code, oom_killed=oom)
    assert is_end_of_engine(ended, watched=watched) is expected


@pytest.mark.parametrize(
    ("exit_code", "unseen", "reason"),
    [
        (255, True, "its exit was not observed: the engine or the host went down"),
        (143, True, "exit code 143, signal 15, while the engine or the daemon was down"),
        (255, False, "exit code 255"),
        (143, False, "exit code 143, signal 15"),
        (192, False, "exit code 192, signal 64"),
        (193, False, "exit code 193"),
        (128, False, "exit code 128"),
    ],
)
def test_the_reason_of_an_unseen_death(exit_code, unseen, reason):
    assert Death("id", NOW, exit_code, oom_killed=False, unseen=unseen).reason == reason


def test_an_unhealthy_sandbox_is_restarted_with_its_streaks_backoff():
    health = Health("id", 7.0, NOW - 100, Verdict.UNHEALTHY, since=NOW)
    due = unhealthy_restart_due(health, SandboxMemory(streak=3), RESTART, "alice")
    assert 3.6 <= due - NOW <= 4.0
    long_well = replace(health, seen_at=NOW - 600)
    assert unhealthy_restart_due(long_well, SandboxMemory(streak=3), RESTART, "alice") == NOW


def test_a_stable_run_that_turns_unhealthy_resets_the_streak():
    health = Health("id", 7.0, NOW - 599, Verdict.UNHEALTHY, since=NOW)
    assert after_run(SandboxMemory(streak=3), health, RESTART).streak == 3
    stable = replace(health, seen_at=NOW - 600)
    assert after_run(SandboxMemory(streak=3), stable, RESTART).streak == 0


def test_a_crash_loop_is_reported_at_each_doubling():
    assert [n for n in range(200) if is_crash_loop_reported(n)] == [5, 10, 20, 40, 80, 160]
