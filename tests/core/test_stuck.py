"""What cannot be done now holds back nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.model import Container, Failure, Fate, Memory, Phase, Verb
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


def stuck(leftover: Container) -> Memory:
    """Removing it has just failed."""
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
def test_a_leftover_that_cannot_be_removed_holds_back_no_edit(leftover):
    dead = container(NAME, Phase.EXITED)
    assert step(snapshot(desired(), leftover, dead, memory=stuck(leftover))).startswith(
        "start alice"
    )
    rest = snapshot(desired(), leftover, container(), memory=stuck(leftover))
    assert step(rest) == "wait until +30: device busy"


def test_a_leftover_is_tried_again_when_it_is_due():
    leftover = container(PREV, Phase.EXITED, OLD)
    due = failing(Verb.REMOVE, spec_hash=OLD, due=NOW, on=leftover)
    assert step(snapshot(desired(), leftover, container(), memory=due)).startswith("remove prev")


@pytest.mark.parametrize("name", [NEXT, PREV])
def test_no_replacement_is_begun_while_a_name_that_it_needs_is_taken(name):
    leftover = container(name, Phase.DEAD, OLD)
    asleep = container(NAME, Phase.PAUSED, OLD)
    assert step(snapshot(desired(), leftover, asleep, memory=stuck(leftover))).startswith(
        "unpause alice"
    )
    ready = [container(spec_hash=OLD), leftover]
    assert (
        step(snapshot(desired(), *ready, memory=stuck(leftover))) == "wait until +30: device busy"
    )


def test_no_replacement_is_finished_while_a_name_that_it_needs_is_taken():
    leftover = container(PREV, Phase.DEAD, OLD)
    made = [leftover, container(spec_hash=OLD), container(NEXT, CREATED)]
    assert step(snapshot(desired(), *made, memory=stuck(leftover))) == "wait until +30: device busy"


def test_what_is_still_needed_is_no_leftover():
    old, new = container(NAME, Phase.EXITED, OLD), container(NEXT, CREATED)
    for one in (old, new):
        assert step(snapshot(desired(), old, new, memory=stuck(one))).startswith(
            "rename alice -> prev"
        )
    undone = container(PREV, Phase.EXITED)
    assert step(snapshot(desired(), undone, memory=stuck(undone))).startswith(
        "rename prev -> alice"
    )
    leftover = container(PREV, Phase.EXITED, OLD)
    assert step(
        snapshot(desired(), leftover, container(NAME, CREATED), memory=stuck(leftover))
    ).startswith("start alice")


def test_a_successor_that_nobody_needs_holds_back_no_edit():
    leftover, asleep = container(NEXT, CREATED), container(NAME, Phase.PAUSED)
    assert step(snapshot(desired(), asleep, leftover, memory=stuck(leftover))).startswith("unpause")
    leftover = container(NEXT, CREATED, OLD)
    assert (
        step(snapshot(desired(), leftover, memory=stuck(leftover)))
        == "create alice (it does not exist)"
    )


def test_the_earlier_of_two_waits_counts():
    leftover = container(PREV, Phase.EXITED, OLD)
    exited = container(NAME, Phase.EXITED)
    memory = ended(exited, NOW + 5, failures=stuck(leftover).failures)
    dead = snapshot(desired(), leftover, exited, memory=memory)
    assert step(dead) == "wait until +5: its next restart: it ended: exit code 0"


def test_one_whose_name_was_taken_is_not_sent_to_a_name_that_is_taken():
    bob, leftover = container("bob"), container(PREV, Phase.DEAD, OLD)
    refused = failing(Verb.RENAME, due=NOW, on=bob)
    failures = (*stuck(leftover).failures, *refused.failures)
    seen = snapshot(
        desired(),
        bob,
        leftover,
        memory=Memory(failures=failures),
    )
    assert step(seen) == "rename bob -> alice (it is not under its name)"


def test_one_that_cannot_be_removed_holds_back_no_other_deletion():
    leftover = container(PREV, Phase.DEAD, OLD)
    deleted = snapshot(None, leftover, container(), memory=stuck(leftover), fate=Fate.DELETED)
    assert step(deleted) == "stop alice (its record was taken out)"


def test_what_failed_on_one_container_holds_back_no_other_of_the_same_edit():
    leftover, other = container(PREV, Phase.DEAD), container("renamed", Phase.EXITED)
    current = container()
    seen = snapshot(desired(), current, leftover, other, memory=stuck(leftover))
    assert step(seen).startswith("remove renamed")


def test_a_deletion_waits_for_the_last_one():
    leftover = container(PREV, Phase.DEAD, OLD)
    deleted = snapshot(None, leftover, memory=stuck(leftover), fate=Fate.DELETED)
    assert step(deleted) == "wait until +30: device busy"


def remains(of: Container, starts: int = 3, **more) -> Memory:
    """As many starts failed because of something that only this container has."""
    failed = Failure(Verb.START, HASH, "id exists", starts, NOW - 9, NOW - 1, of.id, of.id)
    return Memory(failures=(replace(failed, **more),))


def test_one_that_cannot_be_started_any_more_is_replaced():
    dead = container(NAME, Phase.EXITED)
    assert step(snapshot(desired(), dead, memory=remains(dead))) == (
        "create next (the engine cannot start it any more)"
    )
    assert steps(snapshot(desired(), dead, memory=remains(dead))) == [
        "create next",
        "rename alice -> prev",
        "rename next -> alice",
        "start alice",
        "remove prev",
    ]


def test_an_engine_gets_its_time_to_clear_remains_away():
    dead = container(NAME, Phase.EXITED)
    assert step(snapshot(desired(), dead, memory=remains(dead, 2))).startswith("start alice")


def test_only_the_one_in_whose_way_remains_are_is_replaced():
    dead, other = container(NAME, Phase.EXITED), container("another")
    assert step(snapshot(desired(), dead, memory=remains(other))).startswith("start alice")
    failed = failing(Verb.START, due=NOW - 1)
    assert step(snapshot(desired(), dead, memory=failed)).startswith("start alice")


def test_one_that_ran_before_and_fails_often_is_replaced_to_find_out():
    dead = container(NAME, Phase.EXITED)
    assert step(snapshot(desired(), dead, memory=remains(dead, 5, wrecked=""))).startswith("start")
    assert step(snapshot(desired(), dead, memory=remains(dead, 6, wrecked=""))).startswith("create")
    kept = container(NAME, Phase.EXITED, OLD)
    memory = remains(kept, 6, wrecked="", spec_hash=OLD)
    assert step(snapshot(desired(on_change="ignore"), kept, memory=memory)).startswith(
        "start alice"
    )
    new = container(NAME, CREATED)
    failed = failing(Verb.START, due=NOW - 1)
    often = Memory(failures=(replace(failed.failures[0], count=99),))
    assert step(snapshot(desired(), new, memory=often)).startswith("start alice")


def test_the_old_one_comes_back_unless_it_is_certain_that_it_cannot_start():
    old, new = container(PREV, Phase.EXITED), container(NAME, CREATED)
    swap = failing(Verb.START, cause="network agents not found").failures
    doubtful = remains(old, 6, wrecked="").failures
    assert step(snapshot(desired(), old, new, memory=Memory(failures=(*doubtful, *swap)))) == (
        "remove alice (it cannot be started: the one before it comes back)"
    )
    certain = Memory(failures=(*remains(old).failures, *swap))
    assert step(snapshot(desired(), old, new, memory=certain)) == (
        "wait until +30: network agents not found"
    )


def test_one_that_came_back_is_started_while_another_replacement_waits():
    dead = container(NAME, Phase.EXITED)
    swap = failing(Verb.START, cause="no such device").failures
    memory = Memory(failures=(*remains(dead, 6, wrecked="").failures, *swap))
    assert step(snapshot(desired(), dead, memory=memory)).startswith("start alice")


def test_one_that_was_started_after_all_is_kept():
    runs = container()
    assert step(snapshot(desired(), runs, memory=remains(runs))) == "nothing"


@pytest.mark.parametrize("phase", [Phase.DEAD, Phase.REMOVING])
def test_wreckage_that_cannot_be_removed_gives_the_name_back(phase):
    wreck = container(NAME, phase)
    assert step(snapshot(desired(), wreck)).startswith("remove alice")
    assert step(snapshot(desired(), wreck, memory=stuck(wreck))) == (
        "rename alice -> prev (it cannot be removed, and its name is needed)"
    )
    aside = container(PREV, phase)
    assert (
        step(snapshot(desired(), aside, memory=stuck(aside))) == "create alice (it does not exist)"
    )
    well = snapshot(desired(), aside, container(id="new"), memory=stuck(aside))
    assert step(well) == "wait until +30: device busy"


def test_wreckage_gives_the_name_back_as_often_as_there_are_others():
    first, second, third = (container(name, Phase.DEAD) for name in (PREV, NEXT, NAME))
    memory = Memory(failures=tuple(f for c in (first, second, third) for f in stuck(c).failures))
    assert step(snapshot(desired(), first, third, memory=memory)).startswith("rename alice -> next")
    assert step(snapshot(desired(), first, second, third, memory=memory)) == (
        "wait until +30: device busy"
    )
