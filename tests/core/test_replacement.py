"""A replacement resumes from each point, which the containers' names show."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.action import Source, Verb
from reconciler.core.observed import Phase, Volume
from reconciler.core.plan import plan
from reconciler.core.snapshot import Identity, ImageState
from tests.core.builders import (
    HASH,
    NAME,
    NEXT,
    NOW,
    OLD,
    PREV,
    blocked,
    container,
    desired,
    failing,
    snapshot,
    step,
    steps,
)

RUNNING, PAUSED, EXITED, CREATED = Phase.RUNNING, Phase.PAUSED, Phase.EXITED, Phase.CREATED
NEWER = "1:newer"


def test_the_successor_is_created_before_the_current_one_stops():
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
            "rename next -> alice (the container has the wrong name)",
        ),
        (
            (container(PREV, EXITED, OLD), container(NAME, CREATED)),
            "start alice (it replaces the previous container)",
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
def test_a_replacement_resumes_from_each_point(containers, expected):
    assert step(snapshot(desired(), *containers)) == expected


def test_a_stopped_sandbox_is_replaced_without_a_start():
    swapped = snapshot(desired("stopped"), container(PREV, EXITED, OLD), container(NAME, CREATED))
    assert step(swapped) == "remove prev (it was replaced)"


def test_a_successor_that_cannot_start_is_rolled_back():
    old, new = container(PREV, EXITED, OLD), container(NAME, CREATED)
    memory = failing(Verb.START)
    cause = "it cannot be started; the previous container is restored"
    assert step(snapshot(desired(), old, new, memory=memory)) == f"remove alice ({cause})"
    undone = snapshot(desired(), old, memory=memory)
    assert steps(undone) == ["rename prev -> alice", "start alice"]
    assert plan(undone).waiting_for == "no"


def test_a_failed_replacement_is_retried_when_due():
    memory = failing(Verb.START, due=NOW)
    swapped = snapshot(
        desired(),
        container(PREV, EXITED, OLD),
        container(NAME, CREATED),
        memory=memory,
    )
    assert step(swapped) == "start alice (it replaces the previous container)"
    rolled_back = snapshot(desired(), container(spec_hash=OLD), memory=memory)
    assert len(steps(rolled_back)) == 6


@pytest.mark.parametrize(("prev", "successor"), [(RUNNING, EXITED), (EXITED, RUNNING)])
def test_two_containers_are_never_live_at_once(prev, successor):
    others = [container(PREV, prev, OLD), container(NEXT, successor)]
    started_by_hand = snapshot(desired(), container(NAME, CREATED), *others)
    live = "prev" if prev is RUNNING else "next"
    assert (
        step(started_by_hand)
        == f"stop {live} (stop the old container before starting its replacement)"
    )


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        (
            (container(spec_hash=OLD), container(NEXT, CREATED)),
            "remove next (it was made for an older spec)",
        ),
        (
            (container(PREV, EXITED, OLD), container(NEXT, CREATED)),
            "rename prev -> alice (the container has the wrong name)",
        ),
        (
            (container(PREV, EXITED, OLD), container(NAME, CREATED)),
            "remove alice (it was made for an older spec)",
        ),
        (
            (container(PREV, EXITED, OLD), container()),
            "remove prev (it was replaced)",
        ),
        ((container(NEXT, CREATED),), "remove next (it was made for an older spec)"),
    ],
    ids=["made", "old aside", "in place", "started", "alone"],
)
def test_the_newest_edit_wins_at_each_point(containers, expected):
    assert step(snapshot(desired(spec_hash=NEWER), *containers)) == expected


def test_a_reverted_edit_removes_the_successor():
    made = snapshot(desired(spec_hash=OLD), container(spec_hash=OLD), container(NEXT, CREATED))
    assert step(made) == "remove next (the replacement is no longer needed)"


def test_a_failed_create_keeps_the_old_container_as_desired():
    memory = failing(Verb.CREATE, cause="bad mount")
    blocked = snapshot(desired(), container(NAME, PAUSED, OLD), memory=memory)
    assert step(blocked) == "unpause alice (running is desired)"
    assert step(snapshot(desired(), container(spec_hash=OLD), memory=memory)) == (
        "wait until +30: bad mount"
    )


def test_a_pull_keeps_the_old_container_as_desired():
    pulling = snapshot(desired("paused"), container(spec_hash=OLD), image=ImageState.PULLING)
    assert step(pulling) == "pause alice (paused is desired)"
    rest = replace(pulling, desired=desired())
    assert step(rest) == "wait: pulling demo:1"


def test_a_blocked_record_keeps_the_old_container_as_desired():
    wanted, why = desired("paused", identity=None), blocked(Source.PORTS, "no host port is free")
    assert (
        step(snapshot(wanted, container(spec_hash=OLD), blockers=why))
        == "pause alice (paused is desired)"
    )
    assert step(snapshot(wanted, container(NAME, PAUSED, OLD), blockers=why)) == (
        "wait: no host port is free"
    )


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
def test_on_change_decides_when_a_changed_spec_replaces(on_change, state, phase, expected):
    wanted = desired(state, on_change=on_change)
    assert step(snapshot(wanted, container(NAME, phase, OLD))) == expected


MOVED = Identity("secret-key", {8000: 30001})


def test_changed_host_ports_replace_only_a_stopped_container():
    moved = desired(identity=MOVED)
    assert step(snapshot(moved, container())) == "nothing"
    assert step(snapshot(moved, container(NAME, CREATED))) == "create next (its host ports changed)"


@pytest.mark.parametrize("on_change", ["ignore", "next-start"])
def test_changed_host_ports_replace_whatever_on_change_says(on_change):
    moved = desired(identity=MOVED, on_change=on_change)
    assert step(snapshot(moved, container(NAME, CREATED, OLD))).startswith("create next")


def test_an_ignored_edit_of_ports_or_workspace_replaces_nothing():
    more = [{"name": "A", "container_port": 8000}, {"name": "B", "container_port": 8001}]
    leased = Identity("secret-key", {8000: 30000, 8001: 30001})
    wanted = desired(on_change="ignore", ports=more, identity=leased)
    made = container(NAME, EXITED, OLD, volumes=frozenset())
    assert step(snapshot(wanted, made, volumes=())).startswith("start alice")


def test_a_lost_workspace_is_recreated_before_the_start():
    lost = snapshot(desired(), container(NAME, EXITED), volumes=())
    assert step(lost) == "create-volume workspace (the workspace volume does not exist)"
    assert step(snapshot(desired(), container(), volumes=())) == "nothing"


def test_a_successor_with_outdated_ports_is_removed():
    moved = desired(identity=MOVED)
    made = snapshot(moved, container(NAME, EXITED, OLD), container(NEXT, CREATED))
    assert step(made) == "remove next (it was made for an older spec)"


def test_a_hash_of_another_version_is_no_drift():
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
