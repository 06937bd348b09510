"""Whole plans, as ``reconciler plan`` prints them."""

from __future__ import annotations

import pytest

from reconciler.core.observed import Phase
from reconciler.core.plan import MAX_STEPS, Plan, plan
from reconciler.core.snapshot import ImageState, Orphans
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
    "create-volume workspace (the workspace volume does not exist)",
    "create alice (the container does not exist)",
]
SWAP = [
    "rename alice -> prev (the spec changed)",
    "rename next -> alice (the container has the wrong name)",
]
MAKE = "create next (the spec changed)"
STOP = "stop alice (the spec changed)"
UNPAUSE = "unpause alice (the spec changed)"
START = "start alice (it replaces the previous container)"
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
            [
                "pull demo:1 (the container does not exist)",
                *NEW,
                "start alice (running is desired)",
            ],
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
                deleted=True,
                orphans=Orphans(volumes={VOLUME: NOW}, retain={VOLUME: 0.0}),
            ),
            [
                "stop alice (its record was deleted)",
                "remove alice (its record was deleted)",
                "remove-volume workspace (its retention has expired)",
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
def test_plans_of_the_main_scenarios(seen, expected):
    assert [short(str(action)) for action in plan(seen).actions] == expected


def test_a_plan_ends_at_the_first_wait():
    pulling = plan(snapshot(desired(), image=ImageState.PULLING))
    assert pulling == Plan(KEY, (), "pulling demo:1")
    exited = container(NAME, Phase.EXITED)
    backoff = snapshot(desired(), exited, memory=ended(exited, NOW + 9))
    assert plan(backoff).waiting_for == "restart backoff: it ended: exit code 0"


def test_a_plan_has_a_maximum_length():
    several = [container(f"renamed-{number}") for number in range(MAX_STEPS + 1)]
    endless = plan(snapshot(desired(), *several))
    assert len(endless.actions) == MAX_STEPS
    assert endless.waiting_for == "more steps than a plan can predict"
