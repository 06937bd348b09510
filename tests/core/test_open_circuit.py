"""An open circuit blocks the actions of its verb and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.action import Blocker, Source, Verb
from reconciler.core.observed import Phase
from tests.core.builders import NAME, NEXT, NOW, OLD, PREV, container, desired, snapshot, step

HANGS = "circuit open for"


def hung(base, *verbs: Verb, due: float = NOW + 40):
    return replace(
        base,
        blockers=tuple(
            Blocker(verb, due, f"{HANGS} {verb}: the engine hangs; restart it", Source.CIRCUIT)
            for verb in verbs
        ),
    )


@pytest.mark.parametrize(
    ("state", "phase", "verb"),
    [
        ("running", Phase.CREATED, Verb.START),
        ("running", Phase.PAUSED, Verb.UNPAUSE),
        ("paused", Phase.RUNNING, Verb.PAUSE),
        ("stopped", Phase.RUNNING, Verb.STOP),
    ],
)
def test_an_action_waits_while_its_circuit_is_open(state, phase, verb):
    asleep = snapshot(desired(state), container(NAME, phase))
    assert (
        step(hung(asleep, verb)) == f"wait until +40: {HANGS} {verb}: the engine hangs; restart it"
    )
    assert step(hung(asleep, verb, due=NOW)).startswith(f"{verb} alice")
    other = Verb.RENAME
    assert step(hung(asleep, other)).startswith(f"{verb} alice")


def test_an_open_remove_circuit_does_not_block_a_restart():
    leftover, dead = container(PREV, Phase.EXITED, OLD), container(NAME, Phase.EXITED)
    world = hung(snapshot(desired(), leftover, dead), Verb.REMOVE)
    assert step(world).startswith("start alice")


@pytest.mark.parametrize("verb", [Verb.CREATE, Verb.CREATE_VOLUME, Verb.START])
def test_an_open_circuit_blocks_a_replacement(verb):
    paused = container(NAME, Phase.PAUSED, OLD)
    assert step(hung(snapshot(desired(), paused), verb)).startswith("unpause alice")
    ready = snapshot(desired(), container(spec_hash=OLD))
    assert step(hung(ready, verb)).startswith("wait until +40")
    assert step(hung(ready, Verb.REMOVE)).startswith("create next")


def test_an_open_stop_circuit_keeps_the_old_container():
    both = snapshot(desired(), container(spec_hash=OLD), container(NEXT, Phase.CREATED))
    assert step(hung(both, Verb.STOP)).startswith("wait until +40")


def test_a_deletion_skips_the_stop_while_its_circuit_is_open():
    unwanted = snapshot(None, container(), deleted=True)
    assert step(unwanted).startswith("stop alice")
    assert step(hung(unwanted, Verb.STOP)).startswith("remove alice")
    assert step(hung(unwanted, Verb.STOP, Verb.REMOVE)).startswith("wait until +40")
