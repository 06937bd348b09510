"""Limits that others changed are set back in place, and nothing else waits for it."""

from __future__ import annotations

import pytest

from reconciler.core.limits import baseline_of, limits_drift
from reconciler.core.model import Baseline, Limits, Memory, Phase, Verb
from reconciler.core.plan import plan
from tests.core.builders import NAME, OLD, container, desired, failing, snapshot, step

MIB = 1 << 20
MADE = Limits(memory=64 * MIB, memory_swap=128 * MIB)
RESOURCES = {"memory": 64 * MIB}


def remembered(of, limits: Limits = MADE) -> Memory:
    return Memory(baseline=Baseline(of.id, limits))


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PAUSED, Phase.CREATED])
def test_a_changed_limit_is_set_back(phase):
    one = container(NAME, phase, limits=Limits(restart_policy="always", memory=64 * MIB))
    assert step(snapshot(desired(), one, memory=remembered(one))) == (
        "update alice (others changed it: restart_policy is always, not no, "
        "memory_swap is unset, not 134217728)"
    )


def test_a_plan_ends_with_the_limits_as_they_were():
    one = container(limits=Limits(pids=50))
    actions = plan(snapshot(desired(), one, memory=remembered(one))).actions
    assert [action.verb for action in actions] == [Verb.UPDATE]


def test_what_the_engine_refuses_holds_back_nothing_else():
    one = container(NAME, Phase.EXITED, limits=Limits(pids=50))
    failures = failing(Verb.UPDATE, cause="in use", on=one).failures
    memory = Memory(failures=failures, baseline=Baseline(one.id, MADE))
    assert step(snapshot(desired(), one, memory=memory)).startswith("start alice")
    runs = container(limits=Limits(pids=50))
    assert step(snapshot(desired(), runs, memory=memory)) == "wait until +30: in use"


def test_the_limits_of_another_container_are_no_measure():
    one = container(limits=Limits(pids=50))
    assert limits_drift(Memory(baseline=Baseline("another", MADE)), one) == ""
    assert limits_drift(Memory(), one) == ""


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (MADE, MADE),
        (Limits(restart_policy="always"), Limits()),
        (Limits(memory=32 * MIB, memory_swap=64 * MIB, cpu_shares=5), MADE),
        (
            Limits(memory=64 * MIB, memory_swap=-1, cpuset="0"),
            Limits(memory=64 * MIB, memory_swap=-1),
        ),
        (Limits(nano_cpus=10**9, pids=5, cpu_quota=5, memory_reservation=5), Limits()),
    ],
)
def test_one_that_is_adopted_is_held_to_its_spec(seen, expected):
    assert baseline_of(desired(resources=RESOURCES), container(limits=seen)).limits == expected


def test_a_new_one_and_one_of_another_spec_are_taken_as_they_are():
    odd = Limits(memory=5, memory_swap=5, pids=5)
    new = container(NAME, Phase.CREATED, limits=odd)
    assert baseline_of(desired(), new).limits == odd
    assert baseline_of(desired(), container(spec_hash=OLD, limits=odd)).limits == odd
