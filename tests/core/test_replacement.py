"""A replacement from each point that it can have got to: the containers' names are its memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.model import Identity, ImageState, Phase, Verb, Volume
from reconciler.core.plan import plan
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
    snapshot,
    step,
    steps,
)

RUNNING, PAUSED, EXITED, CREATED = Phase.RUNNING, Phase.PAUSED, Phase.EXITED, Phase.CREATED
NEWER = "1:newer"


def test_the_new_one_is_made_before_the_old_one_is_touched():
    assert step(snapshot(desired(), container(spec_hash=OLD))) == "create next (the spec changed)"


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        (
            (container(spec_hash=OLD), container(NEXT, CREATED)),
            "stop alice (the spec changed)",
        ),
        (
            (container(NAME, PAUSED, OLD), container(NEXT, CREATED)),
            "unpause alice (the spec changed)",
        ),
        (
            (container(NAME, EXITED, OLD), container(NEXT, CREATED)),
            "rename alice -> prev (the spec changed)",
        ),
        (
            (container(PREV, EXITED, OLD), container(NEXT, CREATED)),
            "rename next -> alice (it is not under its name)",
        ),
        (
            (container(PREV, EXITED, OLD), container(NAME, CREATED)),
            "start alice (it replaces the one before it)",
        ),
        (
            (container(PREV, EXITED, OLD), container()),
            "remove prev (it was replaced)",
        ),
        (
            (container(PREV, EXITED, OLD), container(NAME, EXITED)),
            "remove prev (it was replaced)",
        ),
    ],
    ids=["made", "made, old paused", "old stopped", "old aside", "in place", "started", "ended"],
)
def test_it_is_taken_up_from_each_point(containers, expected):
    assert step(snapshot(desired(), *containers)) == expected


def test_a_stopped_sandbox_is_replaced_without_a_start():
    swapped = snapshot(desired("stopped"), container(PREV, EXITED, OLD), container(NAME, CREATED))
    assert step(swapped) == "remove prev (it was replaced)"


def test_a_new_one_that_cannot_be_started_makes_way_for_the_old_one():
    old, new = container(PREV, EXITED, OLD), container(NAME, CREATED)
    memory = failing(Verb.START)
    cause = "it cannot be started: the one before it comes back"
    assert step(snapshot(desired(), old, new, memory=memory)) == f"remove alice ({cause})"
    undone = snapshot(desired(), old, memory=memory)
    assert steps(undone) == ["rename prev -> alice", "start alice"]
    assert plan(undone).waiting_for == "no"


def test_a_swap_that_failed_is_tried_again_when_it_is_due():
    memory = failing(Verb.START, due=NOW)
    swapped = snapshot(
        desired(),
        container(PREV, EXITED, OLD),
        container(NAME, CREATED),
        memory=memory,
    )
    assert step(swapped) == "start alice (it replaces the one before it)"
    rolled_back = snapshot(desired(), container(spec_hash=OLD), memory=memory)
    assert len(steps(rolled_back)) == 6


@pytest.mark.parametrize(("prev", "successor"), [(RUNNING, EXITED), (EXITED, RUNNING)])
def test_two_are_never_live_at_once(prev, successor):
    others = [container(PREV, prev, OLD), container(NEXT, successor)]
    started_by_hand = snapshot(desired(), container(NAME, CREATED), *others)
    live = "prev" if prev is RUNNING else "next"
    assert step(started_by_hand) == f"stop {live} (one runs at a time, and it is not the one)"


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        (
            (container(spec_hash=OLD), container(NEXT, CREATED)),
            "remove next (it was made for an older edit)",
        ),
        (
            (container(PREV, EXITED, OLD), container(NEXT, CREATED)),
            "rename prev -> alice (it is not under its name)",
        ),
        (
            (container(PREV, EXITED, OLD), container(NAME, CREATED)),
            "remove alice (it was made for an older edit)",
        ),
        (
            (container(PREV, EXITED, OLD), container()),
            "remove prev (it was replaced)",
        ),
        ((container(NEXT, CREATED),), "remove next (it was made for an older edit)"),
    ],
    ids=["made", "old aside", "in place", "started", "alone"],
)
def test_the_newest_edit_wins_at_each_point(containers, expected):
    assert step(snapshot(desired(spec_hash=NEWER), *containers)) == expected


def test_an_edit_taken_back_leaves_the_old_one_running():
    made = snapshot(desired(spec_hash=OLD), container(spec_hash=OLD), container(NEXT, CREATED))
    assert step(made) == "remove next (no replacement is needed)"


def test_what_cannot_be_made_leaves_the_old_one_as_desired():
    memory = failing(Verb.CREATE, cause="bad mount")
    blocked = snapshot(desired(), container(NAME, PAUSED, OLD), memory=memory)
    assert step(blocked) == "unpause alice (running is desired)"
    assert step(snapshot(desired(), container(spec_hash=OLD), memory=memory)) == (
        "wait until +30: bad mount"
    )


def test_a_pull_leaves_the_old_one_as_desired():
    pulling = snapshot(desired("paused"), container(spec_hash=OLD), image=ImageState.PULLING)
    assert step(pulling) == "pause alice (paused is desired)"
    rest = replace(pulling, desired=desired())
    assert step(rest) == "wait: pulling demo:1"


def test_a_record_with_a_problem_leaves_the_old_one_as_desired():
    wanted = desired("paused", identity=None, problem="no host port is free")
    assert step(snapshot(wanted, container(spec_hash=OLD))) == "pause alice (paused is desired)"
    assert step(snapshot(wanted, container(NAME, PAUSED, OLD))) == "wait: no host port is free"


@pytest.mark.parametrize(
    ("on_change", "state", "phase", "expected"),
    [
        ("recreate", "running", RUNNING, "create next (the spec changed)"),
        ("recreate", "stopped", EXITED, "create next (the spec changed)"),
        ("next-start", "running", RUNNING, "nothing"),
        ("next-start", "paused", PAUSED, "nothing"),
        ("next-start", "running", EXITED, "create next (the spec changed)"),
        ("next-start", "running", CREATED, "create next (the spec changed)"),
        ("next-start", "stopped", EXITED, "nothing"),
        ("next-start", "stopped", RUNNING, "stop alice (stopped is desired)"),
        ("ignore", "running", RUNNING, "nothing"),
        ("ignore", "running", CREATED, "start alice (running is desired)"),
        ("ignore", "stopped", EXITED, "nothing"),
    ],
)
def test_on_change_says_when_a_changed_spec_counts(on_change, state, phase, expected):
    wanted = desired(state, on_change=on_change)
    assert step(snapshot(wanted, container(NAME, phase, OLD))) == expected


MOVED = Identity("secret-key", {8000: 30001})


def test_other_host_ports_count_once_nothing_runs_on_the_old_ones():
    moved = desired(identity=MOVED)
    assert step(snapshot(moved, container())) == "nothing"
    assert step(snapshot(moved, container(NAME, CREATED))) == "create next (its host ports changed)"


@pytest.mark.parametrize("on_change", ["ignore", "next-start"])
def test_ports_that_somebody_else_took_are_left_whatever_on_change_says(on_change):
    moved = desired(identity=MOVED, on_change=on_change)
    assert step(snapshot(moved, container(NAME, CREATED, OLD))).startswith("create next")


def test_an_ignored_edit_of_ports_or_workspace_replaces_nothing():
    more = [{"name": "A", "container_port": 8000}, {"name": "B", "container_port": 8001}]
    leased = Identity("secret-key", {8000: 30000, 8001: 30001})
    wanted = desired(on_change="ignore", ports=more, identity=leased)
    made = container(NAME, EXITED, OLD, volumes=frozenset())
    assert step(snapshot(wanted, made, volumes=())).startswith("start alice")


def test_a_lost_workspace_is_made_again_before_the_start():
    lost = snapshot(desired(), container(NAME, EXITED), volumes=())
    assert step(lost) == "create-volume workspace (its workspace does not exist)"
    assert step(snapshot(desired(), container(), volumes=())) == "nothing"


def test_a_successor_on_ports_that_moved_is_made_again():
    moved = desired(identity=MOVED)
    made = snapshot(moved, container(NAME, EXITED, OLD), container(NEXT, CREATED))
    assert step(made) == "remove next (it was made for an older edit)"


def test_a_hash_of_another_version_is_left_as_it_is():
    assert step(snapshot(desired(spec_hash=HASH), container(spec_hash="0:x"))) == "nothing"


def test_a_dropped_workspace_is_kept_while_the_old_container_uses_it():
    old = container(spec_hash=OLD)
    kept = snapshot(desired(workspace=None, on_change="ignore"), old, volumes=(Volume("v", "a"),))
    assert step(kept) == "nothing"


@pytest.mark.parametrize(
    ("wanted", "cause"),
    [
        (desired(), "the spec changed"),
        (desired(env_file="/e"), "its spec or its env_file changed"),
        (replace(desired(env_file="/e"), changes={OLD: "its env_file /e changed"}), None),
    ],
)
def test_the_cause_of_a_replacement_names_what_changed(wanted, cause):
    cause = cause or "its env_file /e changed"
    assert step(snapshot(wanted, container(spec_hash=OLD))) == f"create next ({cause})"
