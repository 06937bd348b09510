"""What others did, told from what we asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core import policy
from reconciler.core.model import Action, Loss, Memory, Pause, Phase, Run, Status, Verb
from reconciler.core.status import status_of
from tests.core.builders import HASH, NAME, NOW, PREV, VOLUME, container, desired, snapshot, step

PAUSED = container(NAME, Phase.PAUSED)


@pytest.mark.parametrize(
    ("pause", "expected"),
    [
        (Pause(PAUSED.id, ours=True, since=NOW - 1), "unpause alice (running is desired)"),
        (Pause(PAUSED.id, ours=False, since=NOW - 30), "unpause alice (running is desired)"),
        (Pause(PAUSED.id, ours=False, since=NOW - 10), "wait until +20: others paused it"),
        (Pause("another", ours=True, since=NOW - 99), "wait until +30: others paused it"),
        (None, "wait until +30: others paused it"),
    ],
)
def test_a_pause_by_others_is_left_for_the_grace(pause, expected):
    seen = snapshot(desired(), PAUSED, memory=Memory(pause=pause), pause_grace=30.0)
    assert step(seen).startswith(expected)
    stopped = replace(seen, desired=desired("stopped"))
    assert step(stopped).startswith(expected.partition(" (")[0])


def test_only_the_current_container_is_waited_for():
    old = container(PREV, Phase.PAUSED)
    seen = snapshot(desired(), old, container(NAME, Phase.CREATED), pause_grace=30.0)
    assert step(seen).startswith("unpause prev")


def run_of(seen, **changes) -> Memory:
    return Memory(run=replace(Run(seen.id, seen.started_at, NOW - 50), **changes))


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (Memory(), 0),
        (run_of(container()), 0),
        (run_of(container(), started_at=NOW - 500), 3),
        (run_of(container(), started_at=NOW - 500, engine_restarts=3), 1),
        (run_of(container(), started_at=NOW - 500, container_id="another"), 0),
    ],
)
def test_starts_that_nobody_here_asked_for_are_counted(memory, expected):
    seen = container(engine_restarts=3)
    assert policy.restarts_by_others(memory, seen) == expected
    ours = replace(memory, starting=seen.id)
    assert policy.restarts_by_others(ours, seen) == (0 if expected == 1 else expected)
    assert policy.after_look(ours, container(started_at=NOW), NOW).starting == ""


def test_what_is_asked_for_is_noted_before():
    start, pause, stop = (
        Action(verb, NAME, "c", "id") for verb in (Verb.START, Verb.PAUSE, Verb.STOP)
    )
    assert policy.before_step(Memory(), start, NOW).starting == "id"
    assert policy.before_step(Memory(), pause, NOW).pause == Pause("id", ours=True, since=NOW)
    assert policy.before_step(Memory(), stop, NOW) == Memory()


def test_a_lost_workspace_is_told_beside_every_status():
    memory = Memory(loss=Loss(VOLUME, HASH))
    never = status_of(snapshot(desired("stopped"), container(NAME, Phase.CREATED), memory=memory))
    assert never[0] is Status.STOPPED
    assert never[1].startswith("never started; its workspace")
