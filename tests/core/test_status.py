"""The status and the reason in each state."""

from __future__ import annotations

import pytest

from reconciler.core.action import UNREAD, Source, Verb
from reconciler.core.health import Verdict
from reconciler.core.observed import Check, CheckState, Phase
from reconciler.core.restart import Death, SandboxMemory
from reconciler.core.snapshot import Identity, ImageState
from reconciler.core.status import Status, is_at_goal, status_of
from tests.core.builders import (
    HEALTH,
    NAME,
    NEXT,
    NOW,
    PORTS,
    blocked,
    container,
    desired,
    ended,
    failing,
    health,
    snapshot,
)

ENDED = container(NAME, Phase.EXITED, exit_code=3)
DEATH = Death(ENDED.id, NOW - 10, 137, oom_killed=True)
WITH_LOG = Death(ENDED.id, NOW - 10, 1, oom_killed=False, log_tail=("first", "last"))


@pytest.mark.parametrize(
    ("state", "phase", "expected"),
    [
        ("running", Phase.CREATED, (Status.STARTING, "")),
        ("stopped", Phase.CREATED, (Status.STOPPED, "never started")),
        ("running", Phase.RESTARTING, (Status.STARTING, "")),
        ("running", Phase.RUNNING, (Status.RUNNING, "")),
        ("running", Phase.PAUSED, (Status.PAUSED, "others paused it")),
        ("paused", Phase.PAUSED, (Status.PAUSED, "")),
        ("running", Phase.REMOVING, (Status.MISSING, "the engine is removing it")),
        ("running", Phase.EXITED, (Status.ERROR, "exit code 0")),
        ("running", Phase.DEAD, (Status.ERROR, "exit code 0")),
        ("stopped", Phase.EXITED, (Status.STOPPED, "")),
        ("stopped", Phase.DEAD, (Status.ERROR, "exit code 0")),
    ],
)
def test_a_status_for_each_phase(state, phase, expected):
    assert status_of(snapshot(desired(state), container(NAME, phase))) == expected


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict.GOOD, (Status.RUNNING, "")),
        (Verdict.BAD, (Status.STARTING, "refused")),
        (Verdict.UNHEALTHY, (Status.ERROR, "unhealthy: refused")),
        (Verdict.UNKNOWN, (Status.STARTING, "not probed yet")),
    ],
)
def test_a_status_for_each_verdict(verdict, expected):
    runs = container()
    seen = health(verdict, runs, reason="refused")
    assert status_of(snapshot(desired(health=HEALTH), runs, health=seen)) == expected


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict.GOOD, (Status.RUNNING, "health unknown: no route")),
        (Verdict.BAD, (Status.STARTING, "health unknown: no route")),
        (Verdict.UNKNOWN, (Status.STARTING, "health unknown: no route")),
        (Verdict.UNHEALTHY, (Status.ERROR, "unhealthy: refused")),
    ],
)
def test_the_reason_says_why_health_is_unknown(verdict, expected):
    runs = container()
    seen = health(verdict, runs, reason="refused", unknown="no route")
    assert status_of(snapshot(desired(health=HEALTH), runs, health=seen)) == expected


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (ended(ENDED), (Status.STARTING, "")),
        (ended(ENDED, NOW, death=DEATH), (Status.ERROR, "exit code 137, out of memory")),
        (ended(ENDED, NOW, death=WITH_LOG), (Status.ERROR, "exit code 1: last")),
        (SandboxMemory(death=DEATH), (Status.ERROR, "exit code 3")),
        (ended(container("of another"), NOW, death=DEATH), (Status.ERROR, "exit code 3")),
    ],
    ids=["we stopped it", "out of memory", "last log line", "an earlier end", "another's end"],
)
def test_the_reason_of_an_exited_sandbox(memory, expected):
    assert status_of(snapshot(desired(), ENDED, memory=memory)) == expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (snapshot(None), (Status.MISSING, "")),
        (snapshot(desired()), (Status.MISSING, "")),
        (
            snapshot(desired(), blockers=blocked(Source.ENV_FILE, "no env file")),
            (Status.ERROR, "no env file"),
        ),
        (snapshot(desired(), blockers=blocked(Source.ENV_FILE, UNREAD)), (Status.MISSING, UNREAD)),
        (snapshot(desired(), image=ImageState.PULLING), (Status.MISSING, "pulling demo:1")),
        (snapshot(desired(), memory=failing(Verb.CREATE)), (Status.ERROR, "no")),
    ],
    ids=["unknown", "new", "a problem", "a moment", "pulling", "creating failed"],
)
def test_the_status_without_a_container(seen, expected):
    assert status_of(seen) == expected


BROKEN = desired(spec_hash=None)
WANTS_STOP = desired("stopped")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (
            snapshot(BROKEN, container(), blockers=blocked(Source.ENV_FILE, "no env file")),
            (Status.RUNNING, "no env file"),
        ),
        (
            snapshot(desired(), container(), blockers=blocked(Source.RECORD, "f:1:1: bad")),
            (Status.RUNNING, "f:1:1: bad"),
        ),
        (snapshot(desired(), container(), memory=failing(Verb.CREATE)), (Status.RUNNING, "no")),
        (snapshot(WANTS_STOP, container(), memory=failing(Verb.STOP)), (Status.ERROR, "no")),
        (snapshot(None, container()), (Status.RUNNING, "")),
        (
            snapshot(desired(), container(), memory=failing(Verb.CREATE, spec_hash="1:older")),
            (Status.RUNNING, ""),
        ),
    ],
    ids=["env file", "held record", "a failed edit", "cannot stop", "deleted", "an older edit"],
)
def test_a_sandbox_as_desired_is_no_error(seen, expected):
    assert status_of(seen) == expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (
            snapshot(desired(), blockers=blocked(Source.ENGINE, "refused")),
            (Status.UNKNOWN, "the engine is unreachable: refused"),
        ),
        (
            snapshot(desired(), container(), blockers=blocked(Source.ENGINE, "refused")),
            (Status.RUNNING, "last known; the engine is unreachable: refused"),
        ),
        (
            snapshot(desired(), blockers=blocked(Source.INSPECT, "makes no sense")),
            (Status.UNKNOWN, "makes no sense"),
        ),
        (
            snapshot(desired(), ENDED, blockers=blocked(Source.INSPECT, "x")),
            (Status.ERROR, "last known; x"),
        ),
        (
            snapshot(None, blockers=blocked(Source.RECORD, "f:1:1: bad")),
            (Status.ERROR, "f:1:1: bad"),
        ),
    ],
)
def test_an_unreachable_engine_makes_the_status_last_known(seen, expected):
    assert status_of(seen) == expected


def test_a_death_before_the_last_start_is_not_the_reason():
    old = Death(ENDED.id, NOW - 90, 137, oom_killed=True, log_tail=("stale",))
    assert status_of(snapshot(desired(), ENDED, memory=SandboxMemory(death=old))) == (
        Status.ERROR,
        "exit code 3",
    )


@pytest.mark.parametrize(
    ("seen", "at_goal"),
    [
        (snapshot(desired(), container()), True),
        (snapshot(desired("paused"), container()), False),
        (snapshot(desired("paused"), container(NAME, Phase.PAUSED)), True),
        (snapshot(None, container()), False),
    ],
)
def test_a_goal_is_the_desired_status(seen, at_goal):
    assert is_at_goal(seen) is at_goal


@pytest.mark.parametrize(
    ("death", "expected"),
    [
        (Death("x", NOW, 0, oom_killed=False), "exit code 0"),
        (Death("x", NOW, 137, oom_killed=True), "exit code 137, out of memory"),
        (Death("x", NOW, 143, oom_killed=False), "exit code 143, signal 15"),
        (
            Death("x", NOW, 128, oom_killed=False, error="no such file"),
            "exit code 128, no such file",
        ),
    ],
)
def test_the_reason_of_a_death(death, expected):
    assert death.reason == expected


def test_no_secret_is_in_a_repr():
    assert "hush" not in repr(Identity("hush", PORTS)) + repr(container(session_key="hush"))


@pytest.mark.parametrize(
    ("check", "fields", "reason"),
    [
        (CheckState.UNHEALTHY, {}, "HEALTHCHECK fails"),
        (CheckState.HEALTHY, {}, ""),
        (CheckState.STARTING, {}, ""),
        (None, {}, ""),
        (CheckState.UNHEALTHY, {"health": HEALTH}, ""),
    ],
)
def test_a_failing_healthcheck_without_a_probe_is_reported(check, fields, reason):
    runs = container(check=check and Check(check))
    seen = health(Verdict.GOOD, runs)
    status, why = status_of(snapshot(desired(**fields), runs, health=seen))
    assert status is Status.RUNNING
    assert bool(why) == bool(reason)
    assert reason in why


def test_a_failing_healthcheck_of_an_orphan_is_not_reported():
    assert status_of(snapshot(None, container(check=Check(CheckState.UNHEALTHY))))[1] == ""


@pytest.mark.parametrize(
    ("memory", "status"),
    [(SandboxMemory(), Status.STARTING), (ended(ENDED, NOW, death=DEATH), Status.ERROR)],
)
def test_what_is_stopped_for_its_successor_is_no_error(memory, status):
    successor = container(NEXT, Phase.CREATED)
    seen = snapshot(desired(), ENDED, successor, memory=memory)
    assert status_of(seen)[0] is status
