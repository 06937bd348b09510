"""A leftover or unstartable container does not block other actions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.action import Verb
from reconciler.core.observed import Container, Phase
from reconciler.core.restart import Failure, SandboxMemory
from tests.core.builders import (
    HASH,
    NAME,
    NEXT,
    NOW,
    OLD,
    PREV,
    container,
    desired,
    ended,
    failing,
    snapshot,
    step,
    steps,
)

CREATED = Phase.CREATED


def failed_removal(leftover: Container) -> SandboxMemory:
    """Return the memory after the removal of the leftover failed."""
    return failing(Verb.REMOVE, spec_hash=leftover.spec_hash, cause="device busy", on=leftover)


@pytest.mark.parametrize(
    "leftover",
    [
        container(PREV, Phase.DEAD, OLD),
        container(PREV, Phase.EXITED, OLD),
        container(NEXT, Phase.REMOVING, OLD),
        container("renamed", Phase.CREATED, OLD),
    ],
    ids=lambda c: f"{c.phase}",
)
def test_a_leftover_that_stays_does_not_block_an_edit(leftover):
    dead = container(NAME, Phase.EXITED)
    assert step(snapshot(desired(), leftover, dead, memory=failed_removal(leftover))).startswith(
        "start alice"
    )
    rest = snapshot(desired(), leftover, container(), memory=failed_removal(leftover))
    assert step(rest) == "wait until +30: device busy"


def test_the_removal_of_a_leftover_is_retried_when_due():
    leftover = container(PREV, Phase.EXITED, OLD)
    due = failing(Verb.REMOVE, spec_hash=OLD, due=NOW, on=leftover)
    assert step(snapshot(desired(), leftover, container(), memory=due)).startswith("remove prev")


@pytest.mark.parametrize("name", [NEXT, PREV])
def test_a_taken_name_blocks_a_replacement(name):
    leftover = container(name, Phase.DEAD, OLD)
    asleep = container(NAME, Phase.PAUSED, OLD)
    assert step(snapshot(desired(), leftover, asleep, memory=failed_removal(leftover))).startswith(
        "unpause alice"
    )
    ready = [container(spec_hash=OLD), leftover]
    assert (
        step(snapshot(desired(), *ready, memory=failed_removal(leftover)))
        == "wait until +30: device busy"
    )


def test_a_taken_name_blocks_the_end_of_a_replacement():
    leftover = container(PREV, Phase.DEAD, OLD)
    made = [leftover, container(spec_hash=OLD), container(NEXT, CREATED)]
    assert (
        step(snapshot(desired(), *made, memory=failed_removal(leftover)))
        == "wait until +30: device busy"
    )


def test_a_container_that_is_needed_is_no_leftover():
    old, new = container(NAME, Phase.EXITED, OLD), container(NEXT, CREATED)
    for one in (old, new):
        assert step(snapshot(desired(), old, new, memory=failed_removal(one))).startswith(
            "rename alice -> prev"
        )
    undone = container(PREV, Phase.EXITED)
    assert step(snapshot(desired(), undone, memory=failed_removal(undone))).startswith(
        "rename prev -> alice"
    )
    leftover = container(PREV, Phase.EXITED, OLD)
    assert step(
        snapshot(desired(), leftover, container(NAME, CREATED), memory=failed_removal(leftover))
    ).startswith("start alice")


def test_an_unneeded_successor_does_not_block_an_edit():
    leftover, asleep = container(NEXT, CREATED), container(NAME, Phase.PAUSED)
    assert step(snapshot(desired(), asleep, leftover, memory=failed_removal(leftover))).startswith(
        "unpause"
    )
    leftover = container(NEXT, CREATED, OLD)
    assert (
        step(snapshot(desired(), leftover, memory=failed_removal(leftover)))
        == "create alice (the container does not exist)"
    )


def test_the_earlier_of_two_waits_is_used():
    leftover = container(PREV, Phase.EXITED, OLD)
    exited = container(NAME, Phase.EXITED)
    memory = ended(exited, NOW + 5, failures=failed_removal(leftover).failures)
    dead = snapshot(desired(), leftover, exited, memory=memory)
    assert step(dead) == "wait until +5: restart backoff: it ended: exit code 0"


def test_a_container_is_not_renamed_to_a_taken_name():
    bob, leftover = container("bob"), container(PREV, Phase.DEAD, OLD)
    refused = failing(Verb.RENAME, due=NOW, on=bob)
    failures = (*failed_removal(leftover).failures, *refused.failures)
    seen = snapshot(
        desired(),
        bob,
        leftover,
        memory=SandboxMemory(failures=failures),
    )
    assert step(seen) == "rename bob -> alice (the container has the wrong name)"


def test_a_failed_removal_does_not_block_other_deletions():
    leftover = container(PREV, Phase.DEAD, OLD)
    deleted = snapshot(None, leftover, container(), memory=failed_removal(leftover), deleted=True)
    assert step(deleted) == "stop alice (its record was deleted)"


def test_a_failed_removal_does_not_block_that_of_a_stray():
    leftover, other = container(PREV, Phase.DEAD), container("renamed", Phase.EXITED)
    current = container()
    seen = snapshot(desired(), current, leftover, other, memory=failed_removal(leftover))
    assert step(seen).startswith("remove renamed")


def test_a_deletion_waits_for_the_last_container():
    leftover = container(PREV, Phase.DEAD, OLD)
    deleted = snapshot(None, leftover, memory=failed_removal(leftover), deleted=True)
    assert step(deleted) == "wait until +30: device busy"


def unstartable_after(of: Container, starts: int = 3, **more) -> SandboxMemory:
    """Return the memory after so many starts failed with an error of this container alone."""
    failed = Failure(Verb.START, HASH, "id exists", starts, NOW - 9, NOW - 1, of.id, of.id)
    return SandboxMemory(failures=(replace(failed, **more),))


def test_an_unstartable_container_is_replaced():
    dead = container(NAME, Phase.EXITED)
    assert step(snapshot(desired(), dead, memory=unstartable_after(dead))) == (
        "create next (the engine can no longer start it)"
    )
    assert steps(snapshot(desired(), dead, memory=unstartable_after(dead))) == [
        "create next",
        "rename alice -> prev",
        "rename next -> alice",
        "start alice",
        "remove prev",
    ]


def test_an_unstartable_container_is_retried_before_it_is_replaced():
    dead = container(NAME, Phase.EXITED)
    assert step(snapshot(desired(), dead, memory=unstartable_after(dead, 2))).startswith(
        "start alice"
    )


def test_only_the_unstartable_container_is_replaced():
    dead, other = container(NAME, Phase.EXITED), container("another")
    assert step(snapshot(desired(), dead, memory=unstartable_after(other))).startswith(
        "start alice"
    )
    failed = failing(Verb.START, due=NOW - 1)
    assert step(snapshot(desired(), dead, memory=failed)).startswith("start alice")


def test_a_container_whose_start_keeps_failing_is_replaced():
    dead = container(NAME, Phase.EXITED)
    assert step(
        snapshot(desired(), dead, memory=unstartable_after(dead, 5, unstartable=""))
    ).startswith("start")
    assert step(
        snapshot(desired(), dead, memory=unstartable_after(dead, 6, unstartable=""))
    ).startswith("create")
    kept = container(NAME, Phase.EXITED, OLD)
    memory = unstartable_after(kept, 6, unstartable="", spec_hash=OLD)
    assert step(snapshot(desired(on_change="ignore"), kept, memory=memory)).startswith(
        "start alice"
    )
    new = container(NAME, CREATED)
    failed = failing(Verb.START, due=NOW - 1)
    often = SandboxMemory(failures=(replace(failed.failures[0], count=99),))
    assert step(snapshot(desired(), new, memory=often)).startswith("start alice")


def test_a_predecessor_is_restored_unless_it_is_unstartable():
    old, new = container(PREV, Phase.EXITED), container(NAME, CREATED)
    swap = failing(Verb.START, cause="network agents not found").failures
    doubtful = unstartable_after(old, 6, unstartable="").failures
    assert step(
        snapshot(desired(), old, new, memory=SandboxMemory(failures=(*doubtful, *swap)))
    ) == ("remove alice (it cannot be started; the previous container is restored)")
    certain = SandboxMemory(failures=(*unstartable_after(old).failures, *swap))
    assert step(snapshot(desired(), old, new, memory=certain)) == (
        "wait until +30: network agents not found"
    )


def test_a_restored_container_starts_while_a_replacement_waits():
    dead = container(NAME, Phase.EXITED)
    swap = failing(Verb.START, cause="no such device").failures
    memory = SandboxMemory(failures=(*unstartable_after(dead, 6, unstartable="").failures, *swap))
    assert step(snapshot(desired(), dead, memory=memory)).startswith("start alice")


def test_an_unstartable_container_that_runs_is_kept():
    runs = container()
    assert step(snapshot(desired(), runs, memory=unstartable_after(runs))) == "nothing"


@pytest.mark.parametrize("phase", [Phase.DEAD, Phase.REMOVING])
def test_a_dead_container_that_stays_gives_up_its_name(phase):
    dead = container(NAME, phase)
    assert step(snapshot(desired(), dead)).startswith("remove alice")
    assert step(snapshot(desired(), dead, memory=failed_removal(dead))) == (
        "rename alice -> prev (its removal failed and its name is needed)"
    )
    aside = container(PREV, phase)
    assert (
        step(snapshot(desired(), aside, memory=failed_removal(aside)))
        == "create alice (the container does not exist)"
    )
    well = snapshot(desired(), aside, container(id="new"), memory=failed_removal(aside))
    assert step(well) == "wait until +30: device busy"


def test_dead_containers_take_every_free_name_in_turn():
    first, second, third = (container(name, Phase.DEAD) for name in (PREV, NEXT, NAME))
    memory = SandboxMemory(
        failures=tuple(f for c in (first, second, third) for f in failed_removal(c).failures)
    )
    assert step(snapshot(desired(), first, third, memory=memory)).startswith("rename alice -> next")
    assert step(snapshot(desired(), first, second, third, memory=memory)) == (
        "wait until +30: device busy"
    )
