"""The life cycle: each phase to each desired state, deletion, orphans, waits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.action import Source, Verb
from reconciler.core.decide import decide
from reconciler.core.health import Verdict
from reconciler.core.observed import Phase
from reconciler.core.restart import Death, SandboxMemory
from reconciler.core.snapshot import ImageState, Orphans
from tests.core.builders import (
    HASH,
    HEALTH,
    NAME,
    NEXT,
    NOW,
    OLD,
    PREP,
    PREV,
    VOLUME,
    blocked,
    container,
    desired,
    ended,
    failing,
    health,
    snapshot,
    step,
    volume,
)

DAY = 86400.0


@pytest.mark.parametrize(
    ("state", "phase", "expected"),
    [
        ("running", Phase.CREATED, "start alice (running is desired)"),
        ("running", Phase.RUNNING, "nothing"),
        ("running", Phase.PAUSED, "unpause alice (running is desired)"),
        ("running", Phase.RESTARTING, "wait until +1: the engine is restarting it"),
        ("running", Phase.EXITED, "start alice (it ended: exit code 0)"),
        ("running", Phase.REMOVING, "remove alice (its removal has already begun)"),
        ("running", Phase.DEAD, "remove alice (the engine reports it as dead)"),
        ("paused", Phase.CREATED, "start alice (paused is desired)"),
        ("paused", Phase.RUNNING, "pause alice (paused is desired)"),
        ("paused", Phase.PAUSED, "nothing"),
        ("paused", Phase.RESTARTING, "wait until +1: the engine is restarting it"),
        ("paused", Phase.EXITED, "start alice (it ended: exit code 0)"),
        ("paused", Phase.DEAD, "remove alice (the engine reports it as dead)"),
        ("stopped", Phase.CREATED, "nothing"),
        ("stopped", Phase.RUNNING, "stop alice (stopped is desired)"),
        ("stopped", Phase.PAUSED, "unpause alice (stopped is desired)"),
        ("stopped", Phase.RESTARTING, "stop alice (stopped is desired)"),
        ("stopped", Phase.EXITED, "nothing"),
        ("stopped", Phase.DEAD, "remove alice (the engine reports it as dead)"),
    ],
)
def test_each_phase_leads_to_each_desired_state(state, phase, expected):
    assert step(snapshot(desired(state), container(NAME, phase))) == expected


@pytest.mark.parametrize(
    ("pull", "image", "expected"),
    [
        ("missing", ImageState.UNKNOWN, "create alice (the container does not exist)"),
        ("missing", ImageState.FRESH, "create alice (the container does not exist)"),
        ("missing", ImageState.ABSENT, "pull demo:1 (the container does not exist)"),
        ("missing", ImageState.PULLING, "wait: pulling demo:1"),
        ("always", ImageState.UNKNOWN, "pull demo:1 (the container does not exist)"),
        ("always", ImageState.ABSENT, "pull demo:1 (the container does not exist)"),
        ("always", ImageState.FRESH, "create alice (the container does not exist)"),
        ("never", ImageState.ABSENT, "create alice (the container does not exist)"),
    ],
)
def test_the_pull_policy_decides_whether_to_pull(pull, image, expected):
    assert step(snapshot(desired(pull=pull), image=image)) == expected


def test_the_workspace_is_created_before_the_container():
    assert step(snapshot(desired(), volumes=())) == (
        "create-volume workspace (the workspace volume does not exist)"
    )
    assert (
        step(snapshot(desired(workspace=None), volumes=()))
        == "create alice (the container does not exist)"
    )


def test_a_blocker_prevents_a_create():
    assert (
        step(snapshot(desired(spec_hash=None), blockers=blocked(Source.ENV_FILE, "no env file")))
        == "wait: no env file"
    )


def test_a_failed_action_waits_until_it_is_due():
    memory = failing(Verb.CREATE, cause="bad mount")
    assert step(snapshot(desired(), memory=memory)) == "wait until +30: bad mount"
    assert step(snapshot(desired(), memory=failing(Verb.CREATE, due=NOW))).startswith(
        "create alice"
    )
    assert step(snapshot(desired(spec_hash="1:newer"), memory=memory)).startswith("create alice")


EXITED = container(NAME, Phase.EXITED)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (SandboxMemory(), "start alice (it ended: exit code 0)"),
        (ended(EXITED), "start alice (running is desired)"),
        (ended(EXITED, NOW), "start alice (it ended: exit code 0)"),
        (
            ended(EXITED, NOW + 4),
            "wait until +4: restart backoff: it ended: exit code 0",
        ),
    ],
    ids=["not yet learned of", "our own stop", "due", "backing off"],
)
def test_an_exited_sandbox_is_started_when_due(memory, expected):
    assert step(snapshot(desired(), EXITED, memory=memory)) == expected


OUT_OF_MEMORY = Death(EXITED.id, NOW, 137, oom_killed=True)


@pytest.mark.parametrize(
    ("memory", "cause"),
    [
        (ended(EXITED, NOW, death=OUT_OF_MEMORY), "exit code 137, out of memory"),
        (SandboxMemory(death=OUT_OF_MEMORY), "exit code 0"),
        (ended(container("another"), NOW, death=OUT_OF_MEMORY), "exit code 0"),
    ],
    ids=["this end", "an earlier end", "the end of another"],
)
def test_the_cause_of_a_restart_is_the_death_in_that_run(memory, cause):
    assert step(snapshot(desired(), EXITED, memory=memory)) == f"start alice (it ended: {cause})"


@pytest.mark.parametrize("unseen", [True, False])
def test_only_a_crash_counts_as_a_restart(unseen):
    death = replace(OUT_OF_MEMORY, unseen=unseen)
    action = decide(snapshot(desired(), EXITED, memory=ended(EXITED, NOW, death=death))).action
    assert action.restart is not unseen


WATCHED = container()


@pytest.mark.parametrize(
    ("state", "verdict", "expected"),
    [
        ("running", Verdict.UNKNOWN, "nothing"),
        ("running", Verdict.BAD, "nothing"),
        ("running", Verdict.GOOD, "nothing"),
        ("running", Verdict.UNHEALTHY, "stop alice (unhealthy: timed out)"),
        ("paused", Verdict.UNKNOWN, "wait: a good probe before it is paused"),
        ("paused", Verdict.BAD, "wait: a good probe before it is paused"),
        ("paused", Verdict.GOOD, "pause alice (paused is desired)"),
        ("paused", Verdict.UNHEALTHY, "stop alice (unhealthy: timed out)"),
        ("stopped", Verdict.UNHEALTHY, "stop alice (stopped is desired)"),
    ],
)
def test_a_verdict_decides_about_a_running_container(state, verdict, expected):
    seen = health(verdict, WATCHED, reason="timed out")
    assert step(snapshot(desired(state, health=HEALTH), WATCHED, health=seen)) == expected


def test_a_verdict_on_an_earlier_run_does_not_count():
    earlier = health(Verdict.UNHEALTHY, WATCHED, started_at=NOW - 5000)
    assert step(snapshot(desired(health=HEALTH), WATCHED, health=earlier)) == "nothing"


def test_an_unhealthy_sandbox_is_restarted_with_backoff():
    seen = health(Verdict.UNHEALTHY, WATCHED, reason="timed out")
    waits = step(
        snapshot(desired(health=HEALTH), WATCHED, health=seen, memory=SandboxMemory(streak=2))
    )
    assert waits.startswith("wait until +1.")
    assert waits.endswith("restart backoff: unhealthy: timed out")


def test_a_renamed_container_gets_its_name_back():
    renamed = container("renamed")
    assert (
        step(snapshot(desired(), renamed))
        == "rename renamed -> alice (the container has the wrong name)"
    )


def test_containers_with_swapped_names_are_renamed():
    candidate = container("the-name-of-another")
    memory = failing(Verb.RENAME, cause="the name is taken", on=candidate)
    assert (
        step(snapshot(desired(), candidate, memory=memory)) == "wait until +30: the name is taken"
    )
    due = snapshot(desired(), candidate, memory=failing(Verb.RENAME, due=NOW, on=candidate))
    assert step(due) == "rename the-name-of-another -> prev (the container has the wrong name)"
    assert step(snapshot(desired(), container(PREV))).startswith("rename prev -> alice")


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (container("b"), container("a", spec_hash=OLD)),
        (container("b"), container("a", Phase.EXITED)),
        (container("b"), container("a", created_at=NOW - 900)),
        (container("b", Phase.EXITED), container("a", spec_hash=OLD)),
    ],
    ids=["the spec", "life", "youth", "the spec before life"],
)
def test_the_best_candidate_is_kept(better, worse):
    for strays in ([better, worse], [worse, better]):
        assert step(snapshot(desired(), *strays)).startswith("rename b -> alice")


def test_a_stray_is_removed_once_another_has_the_name():
    strays = snapshot(desired(), container("renamed"), container())
    assert step(strays) == "remove renamed (alice already exists)"


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (Phase.RUNNING, "stop alice (its record was deleted)"),
        *((p, "remove alice (its record was deleted)") for p in Phase if p is not Phase.RUNNING),
    ],
)
def test_a_deleted_sandbox_is_removed_in_each_phase(phase, expected):
    gone = snapshot(None, container(NAME, phase), deleted=True, may_collect=False)
    assert step(gone) == expected


def test_a_deleted_sandbox_that_does_not_stop_is_removed():
    memory = failing(Verb.STOP, on=container())
    gone = snapshot(None, container(), deleted=True, memory=memory)
    assert step(gone) == "remove alice (its record was deleted)"


@pytest.mark.parametrize("phase", Phase)
def test_an_orphan_is_removed_after_the_grace_in_each_phase(phase):
    found = container(NAME, phase)

    def since(seconds: float) -> Orphans:
        return Orphans(containers={found.id: NOW - seconds})

    grace = "gc_grace has not expired"
    assert step(snapshot(None, found)) == "nothing"
    assert step(snapshot(None, found, orphans=since(100))) == f"wait until +200: {grace}"
    assert step(snapshot(None, found, orphans=since(300))) == "remove alice (no record wants it)"
    assert step(snapshot(None, found, orphans=since(300), may_collect=False)) == "nothing"
    held = replace(since(300), held=frozenset({found.id}))
    assert step(snapshot(None, found, orphans=held)) == "nothing"


def test_each_orphan_has_its_own_grace():
    old, young = container("old"), container("young")
    books = Orphans(containers={old.id: NOW - 200, young.id: NOW - 50})
    assert step(snapshot(None, young, old, orphans=books)).startswith("wait until +100")


def kept(since: float, retain: float | None) -> Orphans:
    return Orphans(volumes={VOLUME: since}, retain={VOLUME: retain})


@pytest.mark.parametrize(
    ("orphans", "expected"),
    [
        (Orphans(), "nothing"),
        (kept(NOW, 0.0), "remove-volume workspace (its retention has expired)"),
        (kept(NOW - 50, 60.0), "wait until +10: "),
        (kept(NOW - 60, 60.0), "remove-volume workspace (its retention has expired)"),
        (kept(NOW - 900 * DAY, None), "nothing"),
    ],
    ids=["not yet noted", "0", "not over", "over", "forever"],
)
def test_a_volume_is_kept_for_its_retention(orphans, expected):
    for wanted in (None, desired(workspace=None)):
        made = container(volumes=frozenset()) if wanted else ()
        several = (made,) if wanted else ()
        assert step(snapshot(wanted, *several, orphans=orphans)) == expected


def test_a_wanted_used_or_uncertain_volume_is_kept():
    over = kept(NOW - DAY, 0.0)
    assert step(snapshot(desired(), container(), orphans=over)) == "nothing"
    in_use = snapshot(desired(workspace=None), container(), orphans=over)
    assert step(in_use) == "nothing"
    assert step(snapshot(None, orphans=over, may_collect=False)) == "nothing"


def test_an_adopted_volume_is_never_removed():
    over = kept(NOW - DAY, 0.0)
    assert step(snapshot(None, volumes=(volume(adopted=True),), orphans=over)) == "nothing"


@pytest.mark.parametrize("wanted", [desired(), desired("stopped")])
def test_a_leftover_stand_in_is_removed_first(wanted):
    left = container(PREP, Phase.CREATED, spec_hash="")
    removal = "remove prep (left over from preparing the workspace)"
    assert step(snapshot(wanted, left)) == removal
    assert step(snapshot(wanted, left, container())) == removal
    stuck = failing(Verb.REMOVE, spec_hash="", on=left)
    assert (
        step(snapshot(wanted, left, memory=stuck)) == "create alice (the container does not exist)"
    )


def test_a_volume_that_cannot_be_removed_waits():
    memory = failing(Verb.REMOVE_VOLUME, spec_hash="", cause="in use", on=VOLUME)
    stuck = snapshot(None, orphans=kept(NOW - DAY, 0.0), memory=memory)
    assert step(stuck) == "wait until +30: in use"
    assert step(replace(stuck, now=NOW + 30)).startswith("remove-volume workspace")


def test_volumes_are_removed_after_their_containers():
    over = kept(NOW - DAY, 0.0)
    gone = snapshot(None, container(NAME, Phase.EXITED), orphans=over, deleted=True)
    assert step(gone) == "remove alice (its record was deleted)"


def test_a_second_volume_is_removed():
    other = volume("from-another-prefix")
    orphans = Orphans(volumes={other.name: NOW - 1}, retain={other.name: 0.0})
    both = snapshot(desired(), container(), volumes=(volume(), other), orphans=orphans)
    assert step(both).startswith("remove-volume from-another-prefix")


def test_a_ready_successor_gets_the_name_first():
    several = [container(n, Phase.EXITED, HASH) for n in (PREV, NEXT, "x")]
    assert step(snapshot(desired(), *several)).startswith("rename next -> alice")
