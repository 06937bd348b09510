"""What cannot be done now holds back nothing else, and no clock makes anybody wait for ever."""

from __future__ import annotations

import pytest

from reconciler.core.model import Failure, Fate, Memory, Phase, Verb
from tests.core.builders import (
    HASH,
    NAME,
    NEXT,
    NOW,
    OLD,
    PREV,
    container,
    desired,
    failing,
    step,
    view,
)

CREATED = Phase.CREATED
DAY = 86400.0
STUCK = failing(Verb.REMOVE, spec_hash=OLD, cause="device busy")


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
    assert step(view(desired(), leftover, dead, memory=STUCK)).startswith("start alice")
    rest = view(desired(), leftover, container(), memory=STUCK)
    assert step(rest) == "wait until +30: device busy"


def test_a_leftover_is_tried_again_when_it_is_due():
    due = failing(Verb.REMOVE, spec_hash=OLD, due=NOW)
    leftover = container(PREV, Phase.EXITED, OLD)
    assert step(view(desired(), leftover, container(), memory=due)).startswith("remove prev")


@pytest.mark.parametrize("name", [NEXT, PREV])
def test_no_replacement_is_begun_while_a_name_that_it_needs_is_taken(name):
    leftover = container(name, Phase.DEAD, OLD)
    asleep = container(NAME, Phase.PAUSED, OLD)
    assert step(view(desired(), leftover, asleep, memory=STUCK)).startswith("unpause alice")
    ready = [container(spec_hash=OLD), leftover]
    assert step(view(desired(), *ready, memory=STUCK)) == "wait until +30: device busy"


def test_no_replacement_is_finished_while_a_name_that_it_needs_is_taken():
    made = [container(PREV, Phase.DEAD, OLD), container(spec_hash=OLD), container(NEXT, CREATED)]
    assert step(view(desired(), *made, memory=STUCK)) == "wait until +30: device busy"


def test_what_is_still_needed_is_no_leftover():
    stuck = failing(Verb.REMOVE, cause="device busy")
    made = [container(NAME, Phase.EXITED, OLD), container(NEXT, CREATED)]
    assert step(view(desired(), *made, memory=stuck)).startswith("rename alice -> prev")
    undone = [container(PREV, Phase.EXITED)]
    assert step(view(desired(), *undone, memory=stuck)).startswith("rename prev -> alice")
    unneeded = [container(PREV, Phase.EXITED, OLD), container(NAME, CREATED)]
    assert step(view(desired(), *unneeded, memory=STUCK)).startswith("start alice")


def test_a_successor_that_nobody_needs_holds_back_no_edit():
    stuck = failing(Verb.REMOVE, cause="device busy")
    asleep = [container(NAME, Phase.PAUSED), container(NEXT, CREATED)]
    assert step(view(desired(), *asleep, memory=stuck)).startswith("unpause alice")
    outdated = container(NEXT, CREATED, OLD)
    assert step(view(desired(), outdated, memory=STUCK)) == "create alice (it does not exist)"


def test_the_earlier_of_two_waits_counts():
    leftover = container(PREV, Phase.EXITED, OLD)
    memory = Memory(last_exit=NOW - 10, not_before=NOW + 5, failures=STUCK.failures)
    dead = view(desired(), leftover, container(NAME, Phase.EXITED), memory=memory)
    assert step(dead) == "wait until +5: its next restart: it ended: exit code 0"


def test_what_bears_the_name_has_to_go_first():
    wreck = container(NAME, Phase.DEAD, OLD)
    assert step(view(desired(), wreck, memory=STUCK)) == "wait until +30: device busy"


def test_one_whose_name_was_taken_is_not_sent_to_a_name_that_is_taken():
    failures = (*STUCK.failures, *failing(Verb.RENAME, due=NOW).failures)
    seen = view(
        desired(),
        container("bob"),
        container(PREV, Phase.DEAD, OLD),
        memory=Memory(failures=failures),
    )
    assert step(seen) == "rename bob -> alice (it is not under its name)"


def test_one_that_cannot_be_removed_holds_back_no_other_deletion():
    leftover = container(PREV, Phase.DEAD, OLD)
    deleted = view(None, leftover, container(), memory=STUCK, fate=Fate.DELETED)
    assert step(deleted) == "stop alice (its record was taken out)"


def test_a_deletion_waits_for_the_last_one():
    deleted = view(None, container(PREV, Phase.DEAD, OLD), memory=STUCK, fate=Fate.DELETED)
    assert step(deleted) == "wait until +30: device busy"


def test_a_clock_set_back_delays_no_restart():
    dead = container(NAME, Phase.EXITED, finished_at=NOW + DAY)
    memory = Memory(streak=3, last_exit=NOW + DAY, not_before=NOW + DAY + 4)
    assert step(view(desired(), dead, memory=memory)).startswith("start alice")


def test_a_clock_set_back_delays_no_second_try():
    failed = Failure(Verb.CREATE, HASH, "no", 1, NOW + DAY, NOW + DAY + 1)
    memory = Memory(failures=(failed,))
    assert step(view(desired(), memory=memory)) == "create alice (it does not exist)"
    assert step(view(desired(), container(spec_hash=OLD), memory=memory)).startswith("create next")
