"""A kind of step at which the engine hangs is waited for, and holds back no other kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.model import Fate, Phase, Verb
from tests.core.builders import NAME, NEXT, NOW, OLD, PREV, container, desired, snapshot, step

HANGS = "the engine hangs at every"


def hung(base, *verbs: Verb, due: float = NOW + 40):
    return replace(base, hung=dict.fromkeys(verbs, due))


@pytest.mark.parametrize(
    ("state", "phase", "verb"),
    [
        ("running", Phase.CREATED, Verb.START),
        ("running", Phase.PAUSED, Verb.UNPAUSE),
        ("paused", Phase.RUNNING, Verb.PAUSE),
        ("stopped", Phase.RUNNING, Verb.STOP),
    ],
)
def test_a_step_at_which_the_engine_hangs_waits_for_the_next_trial(state, phase, verb):
    asleep = snapshot(desired(state), container(NAME, phase))
    assert step(hung(asleep, verb)) == f"wait until +40: {HANGS} {verb}: restart it"
    assert step(hung(asleep, verb, due=NOW)).startswith(f"{verb} alice")
    other = Verb.RENAME
    assert step(hung(asleep, other)).startswith(f"{verb} alice")


def test_a_leftover_whose_removal_hangs_holds_back_no_restart():
    leftover, dead = container(PREV, Phase.EXITED, OLD), container(NAME, Phase.EXITED)
    world = hung(snapshot(desired(), leftover, dead), Verb.REMOVE)
    assert step(world).startswith("start alice")


@pytest.mark.parametrize("verb", [Verb.CREATE, Verb.CREATE_VOLUME, Verb.START])
def test_no_replacement_is_begun_that_could_not_be_finished(verb):
    paused = container(NAME, Phase.PAUSED, OLD)
    assert step(hung(snapshot(desired(), paused), verb)).startswith("unpause alice")
    ready = snapshot(desired(), container(spec_hash=OLD))
    assert step(hung(ready, verb)).startswith("wait until +40")
    assert step(hung(ready, Verb.REMOVE)).startswith("create next")


def test_the_old_one_goes_on_while_stopping_it_hangs():
    both = snapshot(desired(), container(spec_hash=OLD), container(NEXT, Phase.CREATED))
    assert step(hung(both, Verb.STOP)).startswith("wait until +40")


def test_a_deletion_is_forced_where_every_stop_hangs():
    unwanted = snapshot(None, container(), fate=Fate.DELETED)
    assert step(unwanted).startswith("stop alice")
    assert step(hung(unwanted, Verb.STOP)).startswith("remove alice")
    assert step(hung(unwanted, Verb.STOP, Verb.REMOVE)).startswith("wait until +40")
