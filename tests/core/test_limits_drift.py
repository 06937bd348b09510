"""Limits that others changed are corrected in place, without blocking other actions."""

from __future__ import annotations

import pytest

from reconciler.core.action import Verb
from reconciler.core.drift import baseline_of, limits_drift
from reconciler.core.observed import Phase, ResourceLimits
from reconciler.core.plan import plan
from reconciler.core.restart import Baseline, SandboxMemory
from tests.core.builders import NAME, OLD, container, desired, failing, snapshot, step

MIB = 1 << 20
MADE = ResourceLimits(memory=64 * MIB, memory_swap=128 * MIB)
RESOURCES = {"memory": 64 * MIB}


def remembered(of, limits: ResourceLimits = MADE) -> SandboxMemory:
    return SandboxMemory(baseline=Baseline(of.id, limits))


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.PAUSED, Phase.CREATED])
def test_a_changed_limit_is_corrected(phase):
    one = container(NAME, phase, limits=ResourceLimits(restart_policy="always", memory=64 * MIB))
    assert step(snapshot(desired(), one, memory=remembered(one))) == (
        "update alice (others changed it: restart_policy is always, not no, "
        "memory_swap is unset, not 134217728)"
    )


def test_a_plan_corrects_limits_once():
    one = container(limits=ResourceLimits(pids=50))
    actions = plan(snapshot(desired(), one, memory=remembered(one))).actions
    assert [action.verb for action in actions] == [Verb.UPDATE]


def test_a_refused_limit_update_does_not_block_the_rest():
    one = container(NAME, Phase.EXITED, limits=ResourceLimits(pids=50))
    failures = failing(Verb.UPDATE, cause="in use", on=one).failures
    memory = SandboxMemory(failures=failures, baseline=Baseline(one.id, MADE))
    assert step(snapshot(desired(), one, memory=memory)).startswith("start alice")
    runs = container(limits=ResourceLimits(pids=50))
    assert step(snapshot(desired(), runs, memory=memory)) == "wait until +30: in use"


def test_the_baseline_of_another_container_is_ignored():
    one = container(limits=ResourceLimits(pids=50))
    assert limits_drift(SandboxMemory(baseline=Baseline("another", MADE)), one) == ""
    assert limits_drift(SandboxMemory(), one) == ""


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (MADE, MADE),
        (ResourceLimits(restart_policy="always"), ResourceLimits()),
        (ResourceLimits(memory=32 * MIB, memory_swap=64 * MIB, cpu_shares=5), MADE),
        (
            ResourceLimits(memory=64 * MIB, memory_swap=-1, cpuset="0"),
            ResourceLimits(memory=64 * MIB, memory_swap=-1),
        ),
        (
            ResourceLimits(nano_cpus=10**9, pids=5, cpu_quota=5, memory_reservation=5),
            ResourceLimits(),
        ),
    ],
)
def test_an_adopted_container_is_held_to_its_spec(seen, expected):
    assert baseline_of(desired(resources=RESOURCES), container(limits=seen)).limits == expected


def test_a_new_or_outdated_container_is_its_own_baseline():
    odd = ResourceLimits(memory=5, memory_swap=5, pids=5)
    new = container(NAME, Phase.CREATED, limits=odd)
    assert baseline_of(desired(), new).limits == odd
    assert baseline_of(desired(), container(spec_hash=OLD, limits=odd)).limits == odd
