from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core import policy
from reconciler.core.model import (
    Container,
    Death,
    End,
    Failure,
    Health,
    Memory,
    Phase,
    Run,
    Verb,
    Verdict,
)
from reconciler.core.spec import HealthSpec, RestartSpec
from tests.core.builders import HASH, NAME, NOW, OLD, container

RESTART = RestartSpec.model_validate({"backoff": "1s", "max_backoff": "60s", "reset_after": "10m"})
PROBE = HealthSpec.model_validate({"failures": 3, "startup_grace": "60s"})
steady = settings(derandomize=True, deadline=None, database=None)


@steady
@given(st.integers(1, 10**6), st.text())
def test_backoff_doubles_to_a_cap_less_at_most_a_tenth(streak, key):
    whole = min(2.0 ** min(streak - 1, 100), 60.0)
    assert 0.9 * whole <= policy.backoff(1.0, 60.0, streak, key) <= whole


def test_the_first_try_is_at_once_and_keys_differ():
    assert policy.backoff(1.0, 60.0, 0, "a") == 0.0
    assert policy.backoff(1.0, 60.0, 5, "a") != policy.backoff(1.0, 60.0, 5, "b")
    assert policy.backoff(1.0, 60.0, 5, "a") == policy.backoff(1.0, 60.0, 5, "a")


EXITED = container(NAME, Phase.EXITED)


def died(after: float, memory: Memory, ended: Container = EXITED) -> Memory:
    """The daemon saw it run for so many seconds, whatever the engine's dates say."""
    run = Run(ended.id, ended.started_at, NOW - after)
    death = Death(ended.id, NOW, 1, oom_killed=False)
    return policy.after_death(replace(memory, run=run), ended, death, RESTART, "alice")


def test_a_first_death_is_restarted_at_once_and_the_next_ones_wait():
    first = died(5, Memory())
    assert (first.ended, first.not_before) == (End.of(EXITED), NOW)
    second = died(5, policy.after_restart(first))
    assert (second.restarts, second.streak) == (1, 1)
    assert 0.9 <= second.not_before - NOW <= 1.0


def test_a_stable_run_ends_the_streak():
    assert died(600, Memory(restarts=9, streak=9)).streak == 0
    assert died(599, Memory(restarts=9, streak=9)).streak == 9


@pytest.mark.parametrize("started_at", [None, 0.0, NOW - 1e9, NOW + 1e9])
def test_a_run_that_the_daemon_did_not_see_was_not_stable(started_at):
    ended = container(NAME, Phase.EXITED, started_at=started_at)
    death = Death(ended.id, NOW, 1, oom_killed=False)
    memory = policy.after_death(Memory(streak=2), ended, death, RESTART, "alice")
    assert memory.streak == 2


def test_a_run_counts_from_when_it_was_first_seen():
    runs = container(started_at=12.0)
    first = policy.after_look(Memory(), runs, NOW)
    assert first.run == Run(runs.id, 12.0, NOW)
    assert policy.after_look(first, runs, NOW + 5) is first
    another = replace(runs, started_at=13.0)
    assert policy.after_look(first, another, NOW + 5).run == Run(runs.id, 13.0, NOW + 5)


def test_without_dates_a_run_after_an_end_is_another_run():
    ended = container(NAME, Phase.EXITED, started_at=None, finished_at=None)
    memory = died(700, Memory(), ended)
    assert policy.is_accounted(memory, ended)
    runs = replace(ended, phase=Phase.RUNNING)
    again = policy.after_look(memory, runs, NOW + 1)
    assert (again.run.seen_at, again.ended) == (NOW + 1, None)


def test_an_end_like_the_one_before_counts_once_the_container_was_started():
    memory = died(5, Memory())
    assert policy.is_accounted(memory, EXITED)
    assert not policy.is_accounted(policy.after_start(memory), EXITED)


@pytest.mark.parametrize("change", [{"id": "c9"}, {"finished_at": None}, {"started_at": 1.0}])
def test_ends_with_other_dates_are_different_ends(change):
    assert not policy.is_accounted(died(5, Memory()), replace(EXITED, **change))


def test_a_failed_start_that_changes_the_exit_code_is_no_other_end():
    assert policy.is_accounted(died(5, Memory()), replace(EXITED, exit_code=128))


def test_without_an_end_date_the_exit_code_tells_ends_apart():
    undated = replace(EXITED, finished_at=None)
    memory = replace(Memory(), ended=End.of(undated))
    assert policy.is_accounted(memory, undated)
    assert not policy.is_accounted(memory, replace(undated, exit_code=9))


def test_our_own_stop_is_no_death():
    memory = policy.after_own_stop(Memory(streak=3, not_before=NOW + 9), EXITED)
    assert memory == Memory(streak=3, ended=End.of(EXITED), not_before=None)
    assert policy.is_own_stop(memory, EXITED)
    assert not policy.is_own_stop(died(5, memory), EXITED)


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
def test_which_ends_are_the_end_of_the_engine(exit_code, oom, watched, expected):
    ended = replace(EXITED, exit_code=exit_code, oom_killed=oom)
    assert policy.is_end_of_engine(ended, watched=watched) is expected


@pytest.mark.parametrize(
    ("exit_code", "unseen", "reason"),
    [
        (255, True, "its end was not seen: the engine or the host went down"),
        (143, True, "exit code 143, signal 15, while the engine or the daemon was down"),
        (255, False, "exit code 255"),
        (143, False, "exit code 143, signal 15"),
        (192, False, "exit code 192, signal 64"),
        (193, False, "exit code 193"),
        (128, False, "exit code 128"),
    ],
)
def test_how_an_end_is_worded(exit_code, unseen, reason):
    assert Death("id", NOW, exit_code, oom_killed=False, unseen=unseen).reason == reason


def test_an_unhealthy_sandbox_waits_as_long_as_its_streak_says():
    health = Health("id", 7.0, NOW - 100, Verdict.UNHEALTHY, since=NOW)
    due = policy.unhealthy_restart_due(health, Memory(streak=3), RESTART, "alice")
    assert 3.6 <= due - NOW <= 4.0
    long_well = replace(health, seen_at=NOW - 600)
    assert policy.unhealthy_restart_due(long_well, Memory(streak=3), RESTART, "alice") == NOW


def test_a_stable_run_that_ends_unhealthy_begins_the_streak_anew():
    health = Health("id", 7.0, NOW - 599, Verdict.UNHEALTHY, since=NOW)
    assert policy.after_run(Memory(streak=3), health, RESTART).streak == 3
    stable = replace(health, seen_at=NOW - 600)
    assert policy.after_run(Memory(streak=3), stable, RESTART).streak == 0


def failed(verb: Verb = Verb.CREATE, spec_hash: str = HASH, at: float = NOW) -> Failure:
    return Failure(verb, spec_hash, "no", 1, at, at)


def remember(memory: Memory, failure: Failure, *, swap: bool = False) -> Memory:
    relevant = {HASH}
    return policy.after_failure(memory, failure, RESTART, "alice", swap=swap, relevant=relevant)


def test_a_step_that_fails_again_waits_longer():
    once = remember(Memory(), failed())
    assert [f.count for f in once.failures] == [1]
    assert 0.9 <= once.failures[0].not_before - NOW <= 1.0
    thrice = remember(remember(once, failed()), failed(at=NOW + 7))
    assert [f.count for f in thrice.failures] == [3]
    assert 3.6 <= thrice.failures[0].not_before - (NOW + 7) <= 4.0


def test_a_swap_that_failed_is_tried_again_seldom():
    swap = remember(Memory(), failed(Verb.START), swap=True)
    assert 54.0 <= swap.failures[0].not_before - NOW <= 60.0


def test_failures_of_edits_that_are_gone_are_forgotten():
    memory = remember(Memory(), failed(Verb.START))
    memory = remember(memory, failed(Verb.CREATE, OLD, NOW + 1))
    assert [f.verb for f in memory.failures] == [Verb.START, Verb.CREATE]
    memory = remember(memory, failed(Verb.PULL, HASH, NOW + 2))
    assert [f.verb for f in memory.failures] == [Verb.START, Verb.PULL]
    assert memory.failure == memory.failures[-1]


def test_failures_on_what_is_gone_are_forgotten():
    on = [replace(failed(Verb.REMOVE), target=target) for target in ("here", "gone", "")]
    memory = Memory(failures=tuple(on))
    memory = policy.after_failure(
        memory, failed(), RESTART, "alice", swap=False, relevant={HASH, "here"}
    )
    assert [f.target for f in memory.failures] == ["here", "", ""]


def test_success_forgets_failures_and_nothing_else():
    memory = Memory(restarts=2, streak=1, failures=(failed(),))
    assert policy.after_success(memory) == Memory(restarts=2, streak=1)
    assert policy.after_success(Memory(streak=1)) == Memory(streak=1)


def folded(*probes: tuple[float, str | None], spec: HealthSpec = PROBE) -> list[Verdict]:
    health, verdicts = Health("id", 7.0, NOW), []
    for after, reason in probes:
        health = policy.fold(health, spec, reason, NOW + after)
        verdicts.append(health.verdict)
    return verdicts


GOOD, BAD, SICK = Verdict.GOOD, Verdict.BAD, Verdict.UNHEALTHY


def test_a_bad_probe_within_grace_counts_for_nothing():
    assert folded(*[(9.0 * n, "refused") for n in range(6)]) == [BAD] * 6
    assert folded((59.0, "refused"), (60.0, "refused"), (70.0, "refused")) == [BAD] * 3


def test_failures_in_a_row_after_grace_make_it_unhealthy():
    assert folded((60, "a"), (70, "b"), (80, "c"), (90, None)) == [BAD, BAD, SICK, GOOD]


def test_one_bad_probe_of_a_well_sandbox_is_noise():
    probes = [(1, None), (61, "a"), (62, "b"), (63, None), (64, "a"), (65, "b"), (66, "c")]
    assert folded(*probes) == [GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, SICK]


def test_as_many_good_probes_as_asked_make_it_well():
    twice = HealthSpec.model_validate({"successes": 2})
    assert folded((1, None), (2, "a"), (3, None), (4, None), spec=twice) == [
        Verdict.UNKNOWN,
        BAD,
        BAD,
        GOOD,
    ]


def test_a_verdict_dates_from_when_it_was_reached():
    health = policy.fold(Health("id", 7.0, NOW), PROBE, None, NOW + 1)
    assert policy.fold(health, PROBE, None, NOW + 9).since == NOW + 1
    bad = policy.fold(health, PROBE, "refused", NOW + 99)
    assert (bad.reason, bad.good, bad.bad) == ("refused", 0, 1)
    assert policy.fold(bad, PROBE, None, NOW + 100).reason == ""


@pytest.mark.parametrize(
    ("total", "removed", "engages"),
    [
        (4, 3, False),
        (4, 4, True),
        (10, 4, True),
        (13, 4, True),
        (14, 4, False),
        (100, 30, False),
        (100, 31, True),
        (0, 0, False),
    ],
)
def test_the_brake_needs_both_a_number_and_a_share(total, removed, engages):
    assert policy.mass_delete_guard_engages(total, removed, count=3, percent=30.0) is engages


def test_a_loop_of_restarts_is_told_at_each_doubling():
    assert [n for n in range(200) if policy.is_crash_loop_reported(n)] == [5, 10, 20, 40, 80, 160]
