"""The HEALTHCHECK of an image: as a probe, without one, and switched off."""

from typing import Any

import pytest

from reconciler.core.observed import CheckState
from reconciler.telemetry import events
from tests.fakes.host import IMAGE
from tests.simulation.stage import PREFIX, Stage

ALICE = f"{PREFIX}alice"
DOCKER: dict[str, Any] = {"kind": "docker", "startup_grace": "5s", "interval": "2s"}
HEALTHY, UNHEALTHY = CheckState.HEALTHY, CheckState.UNHEALTHY


@pytest.fixture
async def checked(stage: Stage) -> Stage:
    stage.host.checked.add(IMAGE)
    return stage


def status(stage: Stage) -> tuple[str, str]:
    row = stage.row("alice")
    return row["status"], row["reason"]


async def begin(stage: Stage, **record: Any) -> None:
    await stage.edit_or_start({"alice": {"health": DOCKER, **record}})
    await stage.after(1)


async def begin_healthy(stage: Stage, **record: Any) -> None:
    await begin(stage, **record)
    stage.host.check(ALICE, HEALTHY)
    await stage.after(60)


async def test_the_images_check_is_the_probe(checked: Stage):
    await begin(checked)
    assert status(checked) == ("STARTING", "the image's HEALTHCHECK has not passed yet")
    checked.host.check(ALICE, HEALTHY)
    await checked.after(1)
    assert status(checked) == ("RUNNING", "")
    await checked.after(600)
    checked.host.check(ALICE, UNHEALTHY)
    await checked.after(1)
    assert checked.row("alice")["restarts"] == 1
    (told,) = checked.notes.logged(events.SandboxUnhealthy)
    assert told["cause"] == "the image's HEALTHCHECK fails"
    checked.host.check(ALICE, HEALTHY)
    await checked.after(1)
    assert status(checked) == ("RUNNING", "")


async def test_within_the_grace_a_failed_check_restarts_nothing(checked: Stage):
    await begin(checked)
    checked.host.check(ALICE, UNHEALTHY)
    await checked.after(3)
    assert status(checked) == ("STARTING", "the image's HEALTHCHECK fails")
    await checked.after(5)
    checked.host.check(ALICE, UNHEALTHY)
    await checked.after(5)
    assert checked.row("alice")["restarts"] == 1


async def test_a_check_that_failed_while_paused_restarts_nothing(checked: Stage):
    await begin_healthy(checked)
    started = checked.seen("alice").started_at
    for _ in range(3):
        await checked.converge({"alice": {"health": DOCKER, "state": "paused"}})
        for _ in range(5):
            checked.host.check(ALICE, UNHEALTHY)
            await checked.after(10)
        await checked.converge({"alice": {"health": DOCKER}})
        await checked.after(60)
        assert status(checked)[0] == "STARTING"
        # One that was begun while it was paused may still fail.
        checked.host.check(ALICE, UNHEALTHY)
        await checked.after(60)
        checked.host.check(ALICE, HEALTHY)
        await checked.after(1)
        assert status(checked) == ("RUNNING", "")
    assert checked.seen("alice").started_at == started


async def test_check_that_keeps_failing_after_a_pause_restarts(checked: Stage):
    await begin_healthy(checked)
    await checked.converge({"alice": {"health": DOCKER, "state": "paused"}})
    await checked.converge({"alice": {"health": DOCKER}})
    for _ in range(2):
        await checked.after(10)
        checked.host.check(ALICE, UNHEALTHY)
    await checked.after(5)
    assert checked.row("alice")["restarts"] == 1


async def test_lost_event_of_a_check_is_noticed_later(checked: Stage):
    await begin_healthy(checked)
    subscribers = dict(checked.host.subscribers)
    checked.host.subscribers.clear()
    checked.host.check(ALICE, UNHEALTHY)
    checked.host.subscribers.update(subscribers)
    await checked.after(120)
    assert checked.row("alice")["restarts"] == 1


async def test_without_a_check_in_the_image_health_is_unknown(stage: Stage):
    await begin(stage)
    found, reason = status(stage)
    assert found == "STARTING"
    assert "its image has no HEALTHCHECK" in reason
    await stage.after(600)
    assert stage.row("alice")["restarts"] == 0
    assert len(stage.notes.logged(events.ProbeUnknown)) == 1


async def test_without_a_probe_a_failing_check_is_only_reported(checked: Stage):
    await begin_healthy(checked, health=None)
    assert status(checked) == ("RUNNING", "")
    assert not checked.notes.logged(events.SandboxCheckUnheeded)
    checked.host.check(ALICE, UNHEALTHY)
    await checked.after(600)
    found, reason = status(checked)
    assert found == "RUNNING"
    assert "HEALTHCHECK fails" in reason
    assert checked.row("alice")["restarts"] == 0
    assert len(checked.notes.logged(events.SandboxCheckUnheeded)) == 1
    checked.host.check(ALICE, HEALTHY)
    await checked.after(1)
    assert status(checked) == ("RUNNING", "")


async def test_a_check_that_is_switched_off_is_not_run(checked: Stage):
    await begin(checked, health=None, healthcheck="none")
    assert checked.seen("alice").check is None
    assert status(checked) == ("RUNNING", "")


async def test_host_name_survives_replacements(stage: Stage):
    await stage.converge({"alice": {}, "bob": {"hostname": "licensed.example"}})
    for _ in range(2):
        names = [stage.host.box(f"{PREFIX}{key}").config for key in ("alice", "bob")]
        assert [made and made.hostname for made in names] == ["alice", "licensed.example"]
        edited = {"env": {"A": "b"}}
        await stage.converge({"alice": edited, "bob": {"hostname": "licensed.example", **edited}})
