from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core import policy
from reconciler.core.model import Death, Failure, Health, Memory, Phase, Verb, Verdict
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


def died(after: float, memory: Memory) -> Memory:
    ended = container(NAME, Phase.EXITED, started_at=NOW - after, finished_at=NOW)
    death = Death(ended.id, NOW, 1, oom_killed=False)
    return policy.after_death(memory, ended, death, RESTART, "alice")


def test_a_first_death_is_restarted_at_once_and_the_next_ones_wait():
    first = died(5, Memory())
    assert (first.last_exit, first.not_before) == (NOW, NOW)
    second = died(5, policy.after_restart(first))
    assert (second.restarts, second.streak) == (1, 1)
    assert 0.9 <= second.not_before - NOW <= 1.0


def test_a_stable_run_ends_the_streak():
    assert died(600, Memory(restarts=9, streak=9)).streak == 0
    assert died(599, Memory(restarts=9, streak=9)).streak == 9


def test_a_container_that_never_started_has_no_stable_run():
    ended = container(NAME, Phase.DEAD, started_at=None)
    death = Death(ended.id, NOW, 1, oom_killed=False)
    memory = policy.after_death(Memory(streak=2), ended, death, RESTART, "alice")
    assert memory.streak == 2


def test_our_own_stop_is_no_death():
    memory = policy.after_own_stop(Memory(streak=3, not_before=NOW + 9), NOW)
    assert memory == Memory(streak=3, last_exit=NOW, not_before=0.0)


def test_an_unhealthy_sandbox_waits_as_long_as_its_streak_says():
    health = Health("id", NOW - 100, Verdict.UNHEALTHY, since=NOW)
    due = policy.unhealthy_restart_due(health, Memory(streak=3), RESTART, "alice")
    assert 3.6 <= due - NOW <= 4.0
    long_well = replace(health, started_at=NOW - 600)
    assert policy.unhealthy_restart_due(long_well, Memory(streak=3), RESTART, "alice") == NOW


def test_a_stable_run_that_ends_unhealthy_begins_the_streak_anew():
    health = Health("id", NOW - 599, Verdict.UNHEALTHY, since=NOW)
    assert policy.after_run(Memory(streak=3), health, RESTART).streak == 3
    stable = replace(health, started_at=NOW - 600)
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


@pytest.mark.parametrize(
    ("due", "expected"),
    [(NOW - 1, NOW - 1), (NOW + 60, NOW + 60), (NOW + 120, NOW + 120), (NOW + 121, NOW)],
)
def test_a_time_out_of_reach_is_due_now(due, expected):
    assert policy.in_reach(due, NOW, 60.0) == expected


def folded(*probes: tuple[float, str | None], spec: HealthSpec = PROBE) -> list[Verdict]:
    health, verdicts = Health("id", NOW), []
    for after, reason in probes:
        health = policy.fold(health, spec, reason, NOW + after)
        verdicts.append(health.verdict)
    return verdicts


GOOD, BAD, SICK = Verdict.GOOD, Verdict.BAD, Verdict.UNHEALTHY


def test_a_bad_probe_within_grace_counts_for_nothing():
    assert folded(*[(9.0 * n, "refused") for n in range(6)]) == [BAD] * 6
    assert folded((59.0, "refused"), (60.0, "refused"), (70.0, "refused")) == [BAD] * 3


def test_a_clock_set_back_to_before_the_start_gives_no_grace_for_ever():
    assert folded(*[(-7200.0 + n, "refused") for n in range(3)]) == [BAD, BAD, SICK]
    assert folded(*[(-5.0 + n, "refused") for n in range(3)]) == [BAD] * 3


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
    health = policy.fold(Health("id", NOW), PROBE, None, NOW + 1)
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
    assert policy.brake_engages(total, removed, count=3, percent=30.0) is engages


def test_a_loop_of_restarts_is_told_at_each_doubling():
    assert [n for n in range(200) if policy.is_loop_told(n)] == [5, 10, 20, 40, 80, 160]
