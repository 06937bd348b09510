"""Engines with hanging calls: wedged, slow, dead, or with one stuck container."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reconciler.core.action import Verb
from reconciler.core.errors import EngineTimeout, Removing
from reconciler.core.observed import Phase
from reconciler.telemetry import events
from tests.simulation.stage import PLAIN, PREFIX, Stage

TIMEOUT = 60.0
HALF_AN_HOUR = 1800.0


def wedge(stage: Stage, *verbs: str) -> None:
    """Let calls of these verbs time out without an effect; all others work."""
    for verb in verbs:
        stage.engine.latency[verb] = TIMEOUT
        stage.engine.fail_next(verb, EngineTimeout(f"{verb} did not end"), 1_000_000)


def unwedge(stage: Stage) -> None:
    stage.engine.latency.clear()
    stage.engine._faults.clear()


async def hang_at_stop(stage: Stage, seconds: float = HALF_AN_HOUR) -> None:
    """Request the stop of 20 sandboxes, and let no stop end."""
    await stage.converge(crowd("running"))
    wedge(stage, "stop")
    await stage.edit(crowd("stopped"))
    await stage.after(seconds)


@contextmanager
def dead(stage: Stage) -> Iterator[None]:
    """Let every call time out, lists included; no connection breaks."""
    verbs = ("list", "inspect", "info", "create", "start", "stop", "pause", "unpause", "remove")
    wedge(stage, *verbs)
    yield
    unwedge(stage)


def crowd(state: str, count: int = 20) -> dict[str, str]:
    return {f"box-{number}": state for number in range(count)}


async def test_wedge_is_logged_once_and_calls_do_not_pile_up(stage: Stage):
    await stage.converge(crowd("running"))
    wedge(stage, "stop")
    before = stage.engine.count("stop")
    await stage.edit(crowd("stopped"))
    await stage.after(HALF_AN_HOUR)
    (said,) = stage.notes.logged(events.EngineWedged)
    assert "stop" in said["error"]
    assert "restart it" in said["error"]
    # The first of each, which nobody could know would hang, then one now and then.
    assert stage.engine.count("stop") - before <= 20 + 10
    assert len(stage.notes.logged(events.ActionTimedOut)) <= 3
    wedged = (await stage.queries.engine_facts())["wedged"]
    assert wedged == said["error"]


async def test_open_circuit_is_the_reason_of_waiting_sandboxes(stage: Stage):
    await stage.converge(crowd("running", 6) | {"late": "running"})
    wedge(stage, "pause")
    await stage.edit(crowd("paused", 6) | {"late": "running"})
    await stage.after(200)
    await stage.edit(crowd("paused", 6) | {"late": "paused"})
    await stage.after(10)
    assert stage.row("late")["status"] == "RUNNING"
    assert "circuit open for pause" in stage.row("late")["next"]


async def test_other_verbs_continue_with_one_open_circuit(stage: Stage):
    await stage.converge(crowd("running") | {"alice": "running"})
    wedge(stage, "stop")
    await stage.edit(crowd("stopped") | {"alice": "running"})
    await stage.after(300)
    await stage.edit(crowd("stopped") | {"alice": "paused", "new": "running"})
    await stage.after(5)
    assert stage.statuses()["alice"] == "PAUSED"
    assert stage.statuses()["new"] == "RUNNING"


async def test_hanging_verb_leaves_workers_for_others(stage: Stage):
    many = crowd("running", stage.settings.workers + 10)
    await stage.converge(many | {"alice": "running"})
    wedge(stage, "stop")
    await stage.edit(dict.fromkeys(many, "stopped") | {"alice": "paused"})
    await stage.after(5)
    assert stage.statuses()["alice"] == "PAUSED"


async def test_everything_converges_after_the_wedge(stage: Stage):
    await hang_at_stop(stage)
    unwedge(stage)
    await stage.after(400)
    assert set(stage.statuses().values()) == {"STOPPED"}
    assert len(stage.notes.logged(events.EngineUnwedged)) == 1
    assert (await stage.queries.engine_facts())["wedged"] is None


async def test_restarted_engine_closes_the_circuits(stage: Stage):
    await hang_at_stop(stage)
    unwedge(stage)
    stage.host.restart_engine()
    await stage.after(70)
    assert set(stage.statuses().values()) == {"STOPPED"}
    assert len(stage.notes.logged(events.EngineUnwedged)) == 1


async def test_hanging_stop_is_followed_by_a_forced_removal(stage: Stage):
    await hang_at_stop(stage, 300)
    stage.write({"box-0": "stopped"})
    await stage.manager.manifest_sync.read(allow_mass_delete=True)
    await stage.after(TIMEOUT + 10)
    assert set(stage.phases()) == {"box-0"}


async def test_hanging_removals_do_not_block_a_restart(stage: Stage):
    names = crowd("running", 5)
    await stage.converge(names)
    wedge(stage, "remove")
    await stage.edit(names, plain={**PLAIN, "env": {"COLOUR": "red"}})
    await stage.after(300)
    stage.host.kill(stage.seen("box-1").name)
    # Its own removal may be the one that is tried just then.
    await stage.after(2 * TIMEOUT)
    assert {name: stage.seen(name).phase for name in names} == dict.fromkeys(names, "running")


async def test_impossible_replacement_is_not_begun(stage: Stage):
    names = crowd("running", 4)
    await stage.converge(names | {"alice": "running"})
    wedge(stage, "start")
    for name in names:
        stage.host.kill(stage.seen(name).name)
    await stage.after(300)
    before = stage.seen("alice").id
    red = {**PLAIN, "env": {"COLOUR": "red"}}
    await stage.edit(names | {"alice": {"spec": "red"}}, red=red)
    await stage.after(20)
    assert (stage.seen("alice").id, stage.seen("alice").phase) == (before, "running")
    assert stage.engine.count("start") < 30


async def test_one_stuck_container_is_no_wedge(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    wedge(stage, "stop")
    await stage.edit({"alice": "stopped", "bob": "running"})
    await stage.after(HALF_AN_HOUR)
    assert not stage.notes.logged(events.EngineWedged)
    assert stage.row("alice")["status"] == "ERROR"
    # A call that took its whole timeout is backed off from its end.
    assert stage.engine.count("stop") <= 6 + HALF_AN_HOUR / (TIMEOUT + 54)


async def test_slow_engine_is_not_wedged(stage: Stage):
    await stage.converge(crowd("running"))
    stage.engine.latency["stop"] = TIMEOUT
    for _ in range(5):
        stage.engine.fail_next("stop", EngineTimeout("slow"), 2)
    await stage.edit(crowd("stopped"))
    await stage.after(HALF_AN_HOUR)
    assert set(stage.statuses().values()) == {"STOPPED"}
    assert not stage.notes.logged(events.EngineWedged)


async def test_dead_engine_is_not_wedged(stage: Stage):
    await stage.converge(crowd("running"))
    with dead(stage):
        await stage.edit(crowd("stopped"))
        await stage.after(HALF_AN_HOUR)
        assert stage.engine.count("inspect") + stage.engine.count("list") < 3000
    await stage.after(400)
    assert not stage.notes.logged(events.EngineWedged)
    assert stage.notes.logged(events.EngineSlow)
    assert set(stage.statuses().values()) == {"STOPPED"}


def take_long(stage: Stage, *names: str) -> None:
    """Let the engine report an unfinished removal of these containers."""
    remove = stage.engine.remove

    async def slowly(container_id: str) -> None:
        box = stage.host.find(container_id)
        if box is None or box.seen.sandbox not in names:
            await remove(container_id)
            return
        stage.engine.calls.append(("remove", container_id))
        stage.host.set_phase(container_id, Phase.REMOVING)
        await stage.after(TIMEOUT)
        raise Removing("the engine is still removing it")

    stage.engine.remove = slowly


async def test_slow_removal_is_no_wedge_and_no_error(stage: Stage):
    evil, good = crowd("running", 6), {"alice": "running", "bob": "running"}
    await stage.converge(evil | good)
    take_long(stage, *evil)
    stage.write(good)
    await stage.manager.manifest_sync.read(allow_mass_delete=True)
    await stage.after(5 * TIMEOUT)
    red = {**PLAIN, "env": {"COLOUR": "red"}}
    await stage.edit({name: {"spec": "red"} for name in good}, red=red)
    # Each removal that is under way takes a turn for as long as the engine is waited for.
    await stage.after(3 * TIMEOUT)
    assert {name for name in stage.phases() if name in good} == set(good)
    assert not stage.notes.logged(events.EngineWedged)
    assert stage.manager.breakers.open_circuits() == {}
    assert not stage.notes.logged(events.SandboxError)
    assert {stage.row(name)["status"] for name in evil} == {"MISSING"}
    assert "removing" in stage.row("box-1")["reason"]
    for name in evil:
        stage.host.remove(f"{PREFIX}{name}")
    await stage.after(5)
    assert set(stage.phases()) == set(good)


async def test_one_finished_removal_closes_the_circuit(stage: Stage):
    await stage.converge(crowd("running", 5) | {"alice": "running"})
    wedge(stage, "remove")
    await stage.edit(crowd("running", 5), plain={**PLAIN, "env": {"COLOUR": "red"}})
    await stage.after(600)
    assert Verb.REMOVE in stage.manager.breakers.open_circuits()
    stage.host.remove(stage.add_orphan("somebody"))
    await stage.after(1)
    assert stage.manager.breakers.open_circuits() == {}


async def test_parallel_removals_are_limited(stage: Stage):
    many = crowd("running", 100)
    await stage.converge(many | {"alice": "running"})
    stage.engine.latency["remove"] = 1.0
    stage.write({"alice": "running"})
    await stage.manager.manifest_sync.read(allow_mass_delete=True)
    await stage.after(2)
    await stage.edit({"alice": "paused"})
    await stage.after(1.5)
    assert stage.statuses()["alice"] == "PAUSED"
    circuit = stage.manager.breakers._circuits[Verb.REMOVE]
    assert circuit.running == stage.settings.concurrent_removals
    async with asyncio.timeout(60):
        while set(stage.phases()) != {"alice"}:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.1)
    assert not circuit.waiting


@pytest.mark.parametrize("verb", ["pause", "create"])
async def test_single_sandbox_opens_the_circuit(stage: Stage, verb: str):
    await stage.converge({"alice": "running"})
    wedge(stage, verb)
    green = {**PLAIN, "env": {"COLOUR": "green"}}
    await stage.edit({"alice": {"spec": "green", "state": "paused"}}, green=green)
    await stage.after(HALF_AN_HOUR)
    assert stage.notes.logged(events.EngineWedged)
