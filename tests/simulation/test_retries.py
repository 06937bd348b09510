"""Any error of any action is reported and retried with a backoff."""

from collections.abc import Mapping
from typing import Any

import pytest

from reconciler.core.errors import (
    EngineError,
    EngineUnavailable,
    NotFound,
    PortTaken,
)
from reconciler.engine.docker import errors
from reconciler.telemetry import events
from tests.simulation.stage import PLAIN, Stage

TEN_MINUTES = 600.0
# With the default backoff a step is due some 17 times in ten minutes, and each costs a few calls.
MOST_TRIES = 40
MOST_CALLS = 400
TRANSLATORS = {
    "create": errors.on_create,
    "start": errors.on_start_of("x"),
    "pause": errors.on_pause,
    "unpause": errors.on_unpause,
    "rename": errors.on_rename,
}
RED = {**PLAIN, "env": {"COLOUR": "red"}}
BRIEF = {**PLAIN, "workspace": {"path": "/workspace", "retain": 0}}
# What leads to each step: the records before, and after.
SCENES: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "create_volume": ({}, {"alice": "running"}),
    "create": ({}, {"alice": "running"}),
    "prepare": ({}, {"alice": "running"}),
    "start": ({"alice": "stopped"}, {"alice": "running"}),
    "stop": ({"alice": "running"}, {"alice": "stopped"}),
    "pause": ({"alice": "running"}, {"alice": "paused"}),
    "unpause": ({"alice": "paused"}, {"alice": "running"}),
    "rename": ({"alice": "running"}, {"alice": {"spec": "red"}}),
    "remove": ({"alice": "running"}, {"alice": {"spec": "red"}}),
}


def refusals(verb: str) -> list[EngineError]:
    """One error of each class that a status from 400 to 599 is mapped to."""
    say = TRANSLATORS.get(verb, errors.common)
    made = (say(status, f"scripted {status}") for status in range(400, 600))
    return list({type(error): error for error in made}.values())


CASES = [(verb, error) for verb in SCENES for error in refusals(verb)]


def always(stage: Stage, verb: str, error: Exception) -> None:
    stage.engine.fail_next(verb, error, 100_000)


@pytest.mark.parametrize(
    ("verb", "error"), CASES, ids=lambda it: it if isinstance(it, str) else type(it).__name__
)
async def test_a_step_that_always_fails_is_an_error_with_backoff(
    stage: Stage, verb: str, error: EngineError
):
    before, after = SCENES[verb]
    await stage.converge({"bob": "running"} | before)
    always(stage, verb, error)
    began, called = stage.engine.count(verb), len(stage.engine.calls)
    await stage.edit({"bob": "running"} | after, red=RED)
    await stage.after(TEN_MINUTES)
    assert 1 < stage.engine.count(verb) - began <= MOST_TRIES
    assert len(stage.engine.calls) - called <= MOST_CALLS
    row = stage.row("alice")
    # What could not be removed was replaced by one that runs well.
    assert row["status"] == ("RUNNING" if verb == "remove" else "ERROR")
    assert "scripted" in row["reason"]
    assert len(stage.notes.logged(events.SandboxError, sandbox="alice")) == 1
    stage.engine._faults.clear()
    await stage.after(3700)
    assert stage.row("alice")["status"] != "ERROR"


@pytest.mark.parametrize("error", refusals("remove_volume"), ids=lambda it: type(it).__name__)
async def test_unremovable_volume_is_retried_with_backoff(stage: Stage, error: EngineError):
    await stage.converge({"alice": {"spec": "brief"}, "bob": "running"}, brief=BRIEF)
    always(stage, "remove_volume", error)
    await stage.edit({"bob": "running"})
    await stage.after(TEN_MINUTES)
    assert 1 <= stage.engine.count("remove_volume") <= MOST_TRIES


@pytest.mark.parametrize("verb", ["inspect", "log_tail"])
@pytest.mark.parametrize("error", refusals("inspect"), ids=lambda it: type(it).__name__)
async def test_failing_inspection_is_retried_with_backoff(
    stage: Stage, verb: str, error: EngineError
):
    await stage.converge({"alice": "running"})
    always(stage, verb, error)
    called = len(stage.engine.calls)
    stage.host.kill(stage.seen("alice").name)
    await stage.after(TEN_MINUTES)
    assert len(stage.engine.calls) - called <= MOST_CALLS


@pytest.mark.parametrize("error", refusals("log_tail"), ids=lambda it: type(it).__name__)
async def test_unreadable_log_delays_no_restart(stage: Stage, error: EngineError):
    await stage.converge({"alice": "running"})
    always(stage, "log_tail", error)
    stage.host.kill(stage.seen("alice").name)
    await stage.after(30)
    assert stage.phases() == {"alice": "running"}
    assert stage.row("alice")["restarts"] == 1


# A volume that was not created fails its container, which is another case.
NO_EFFECT = [verb for verb in SCENES if verb not in {"create_volume", "prepare"}]


@pytest.mark.parametrize("verb", NO_EFFECT)
async def test_success_without_an_effect_is_a_failure(stage: Stage, verb: str):
    before, after = SCENES[verb]
    await stage.converge({"bob": "running"} | before)

    async def pretend(*_: object) -> str:
        stage.engine.calls.append((verb, ""))
        return "0" * 64

    true = getattr(stage.engine, verb)
    setattr(stage.engine, verb, pretend)
    await stage.edit({"bob": "running"} | after, red=RED)
    await stage.after(TEN_MINUTES)
    assert 1 < stage.engine.count(verb) <= 2 * MOST_TRIES
    assert stage.row("alice")["status"] == ("RUNNING" if verb == "remove" else "ERROR")
    assert "but nothing changed" in stage.row("alice")["reason"]
    setattr(stage.engine, verb, true)
    await stage.after(120)
    assert stage.row("alice")["status"] != "ERROR"


async def test_engine_that_refuses_every_port_is_retried_with_backoff(stage: Stage):
    await stage.converge({"alice": "stopped"})
    always(stage, "start", PortTaken("port is already allocated"))
    await stage.edit({"alice": "running"})
    await stage.after(TEN_MINUTES)
    assert stage.engine.count("start") <= MOST_TRIES
    assert len(stage.engine.calls) <= 2 * MOST_CALLS
    assert stage.row("alice")["status"] == "ERROR"


async def test_a_container_that_is_gone_is_no_failure(stage: Stage):
    await stage.converge({"alice": "stopped"})
    start = stage.engine.start

    async def vanish(container_id: str) -> None:
        stage.engine.start = start
        stage.host.remove(stage.seen("alice").name)
        raise NotFound(f"No such container: {container_id}")

    stage.engine.start = vanish
    await stage.converge({"alice": "running"})
    assert stage.phases() == {"alice": "running"}
    assert not stage.notes.logged(events.SandboxError)


async def test_unavailable_engine_is_no_fault_of_the_sandbox(stage: Stage):
    await stage.converge({"alice": "stopped"})
    always(stage, "start", EngineUnavailable("gone"))
    stage.host.down = True
    stage.host.end_streams()
    await stage.edit({"alice": "running"})
    await stage.after(TEN_MINUTES)
    assert not stage.notes.logged(events.SandboxError)
    stage.engine._faults.clear()
    stage.host.start_engine()
    await stage.after(20)
    assert stage.phases() == {"alice": "running"}
