"""Changes by others are distinguished from our own actions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.action import Action, Verb
from reconciler.core.observed import Phase
from reconciler.core.restart import (
    Loss,
    Pause,
    Run,
    SandboxMemory,
    after_look,
    before_step,
    restarts_by_others,
)
from reconciler.core.status import Status, status_of
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
def test_a_foreign_pause_is_kept_for_the_grace(pause, expected):
    seen = snapshot(desired(), PAUSED, memory=SandboxMemory(pause=pause), pause_grace=30.0)
    assert step(seen).startswith(expected)
    stopped = replace(seen, desired=desired("stopped"))
    assert step(stopped).startswith(expected.partition(" (")[0])


def test_the_pause_grace_covers_the_current_container_only():
    old = container(PREV, Phase.PAUSED)
    seen = snapshot(desired(), old, container(NAME, Phase.CREATED), pause_grace=30.0)
    assert step(seen).startswith("unpause prev")


def run_of(seen, **changes) -> SandboxMemory:
    return SandboxMemory(run=replace(Run(seen.id, seen.started_at, NOW - 50), **changes))


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (SandboxMemory(), 0),
        (run_of(container()), 0),
        (run_of(container(), started_at=NOW - 500), 3),
        (run_of(container(), started_at=NOW - 500, engine_restarts=3), 1),
        (run_of(container(), started_at=NOW - 500, container_id="another"), 0),
    ],
)
def test_starts_by_others_are_counted(memory, expected):
    seen = container(engine_restarts=3)
    assert restarts_by_others(memory, seen) == expected
    ours = replace(memory, starting=seen.id)
    assert restarts_by_others(ours, seen) == (0 if expected == 1 else expected)
    assert after_look(ours, container(started_at=NOW), NOW).starting == ""


def test_a_start_or_pause_is_noted_before_it_is_done():
    start, pause, stop = (
        Action(verb, NAME, "c", "id") for verb in (Verb.START, Verb.PAUSE, Verb.STOP)
    )
    assert before_step(SandboxMemory(), start, NOW).starting == "id"
    assert before_step(SandboxMemory(), pause, NOW).pause == Pause("id", ours=True, since=NOW)
    assert before_step(SandboxMemory(), stop, NOW) == SandboxMemory()


def test_a_lost_workspace_is_in_the_reason_of_every_status():
    memory = SandboxMemory(loss=Loss(VOLUME, HASH))
    never = status_of(snapshot(desired("stopped"), container(NAME, Phase.CREATED), memory=memory))
    assert never[0] is Status.STOPPED
    assert never[1].startswith("never started; its workspace")
