"""Whole plans, as ``reconciler plan`` prints them."""

from __future__ import annotations

import pytest

from reconciler.core.model import Fate, ImageState, Orphans, Phase, Plan
from reconciler.core.plan import MAX_STEPS, plan
from tests.core.builders import (
    HEALTH,
    KEY,
    NAME,
    NOW,
    OLD,
    VOLUME,
    container,
    desired,
    ended,
    short,
    snapshot,
)

NEW = [
    "create-volume workspace (its workspace does not exist)",
    "create alice (it does not exist)",
]
SWAP = [
    "rename alice -> prev (the spec changed)",
    "rename next -> alice (it is not under its name)",
]
MAKE = "create next (the spec changed)"
STOP = "stop alice (the spec changed)"
UNPAUSE = "unpause alice (the spec changed)"
START = "start alice (it replaces the one before it)"
DROP = "remove prev (it was replaced)"
PAUSE = "pause alice (paused is desired)"


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (
            snapshot(desired(health=HEALTH), volumes=()),
            [*NEW, "start alice (running is desired)"],
        ),
        (
            snapshot(desired(pull="always"), volumes=()),
            ["pull demo:1 (it does not exist)", *NEW, "start alice (running is desired)"],
        ),
        (
            snapshot(desired("paused", health=HEALTH), volumes=()),
            [*NEW, "start alice (paused is desired)", PAUSE],
        ),
        (snapshot(desired("stopped"), volumes=()), NEW),
        (snapshot(desired(), container(spec_hash=OLD)), [MAKE, STOP, *SWAP, START, DROP]),
        (
            snapshot(desired("paused", health=HEALTH), container(NAME, Phase.PAUSED, OLD)),
            [MAKE, UNPAUSE, STOP, *SWAP, START, DROP, PAUSE],
        ),
        (
            snapshot(desired("stopped"), container(NAME, Phase.EXITED, OLD)),
            [MAKE, *SWAP, DROP],
        ),
        (
            snapshot(desired("stopped"), container(NAME, Phase.PAUSED)),
            ["unpause alice (stopped is desired)", "stop alice (stopped is desired)"],
        ),
        (
            snapshot(
                None,
                container(),
                fate=Fate.DELETED,
                orphans=Orphans(volumes={VOLUME: NOW}, retain={VOLUME: 0.0}),
            ),
            [
                "stop alice (its record was taken out)",
                "remove alice (its record was taken out)",
                "remove-volume workspace (it was kept as long as was asked)",
            ],
        ),
        (snapshot(desired(), container()), []),
    ],
    ids=[
        "new running",
        "new with a pull",
        "new paused",
        "new stopped",
        "replace running",
        "replace paused",
        "replace stopped",
        "stop a paused one",
        "delete",
        "in sync",
    ],
)
def test_the_main_scenarios(seen, expected):
    assert [short(str(action)) for action in plan(seen).actions] == expected


def test_a_plan_ends_where_something_is_waited_for():
    pulling = plan(snapshot(desired(), image=ImageState.PULLING))
    assert pulling == Plan(KEY, (), "pulling demo:1")
    exited = container(NAME, Phase.EXITED)
    backoff = snapshot(desired(), exited, memory=ended(exited, NOW + 9))
    assert plan(backoff).waiting_for == "its next restart: it ended: exit code 0"


def test_a_plan_has_an_end_in_any_crowd():
    crowd = [container(f"renamed-{number}") for number in range(MAX_STEPS + 1)]
    endless = plan(snapshot(desired(), *crowd))
    assert len(endless.actions) == MAX_STEPS
    assert endless.waiting_for == "more than can be foreseen"
