"""A kill at any moment, with unwritten state lost, leaves one container for each record."""

import pytest

from reconciler.telemetry import events
from tests.simulation.stage import PREFIX, Stage

VERBS = ("create_volume", "create", "prepare", "start", "stop", "pause", "unpause", "rename")
VERBS += ("remove", "inspect", "list")
MOMENTS = [moment / 1000 for moment in range(0, 400, 10)]
EDITS = {
    "created": ({"bob": "running"}, {"alice": "running", "bob": "running"}),
    "paused": ({"alice": "running"}, {"alice": "paused"}),
    "replaced": ({"alice": "running"}, {"alice": {"env": {"A": "1"}}}),
    "replaced asleep": ({"alice": "paused"}, {"alice": {"env": {"A": "1"}, "state": "paused"}}),
    "deleted": ({"alice": "running", "bob": "running"}, {"bob": "running"}),
}


def phases(wanted: dict) -> dict[str, str]:
    return {
        name: it if isinstance(it, str) else it.get("state", "running")
        for name, it in wanted.items()
    }


@pytest.mark.parametrize("edit", EDITS)
async def test_a_kill_at_any_moment_leaves_one_container_a_record(stage: Stage, edit: str):
    former, wanted = EDITS[edit]
    stage.engine.latency = dict.fromkeys(VERBS, 0.01)
    stage.engine.answering = dict.fromkeys(VERBS, 0.01)
    await stage.converge(former)
    for moment in MOMENTS:
        await stage.edit(wanted)
        await stage.after(moment)
        await stage.crash()
        await stage.start()
        await stage.after(1)
        await stage.quiet()
        assert stage.phases() == phases(wanted), moment
        for name in wanted:
            assert stage.seen(name).session_key == stage.store.identity(name).session_key
        await stage.converge(former)
    assert len(stage.host.volumes) == len({*former, *wanted})


@pytest.mark.parametrize("wanted", [{"alice": {"env": {"A": "1"}}}, {"alice": "stopped"}])
async def test_stop_before_a_kill_is_no_crash(stage: Stage, wanted: dict):
    stage.engine.latency = dict.fromkeys(VERBS, 0.01)
    stage.engine.answering = dict.fromkeys(VERBS, 0.01)
    await stage.converge({"alice": "running"})
    for moment in MOMENTS[:20]:
        await stage.edit(wanted)
        await stage.after(moment)
        await stage.crash()
        await stage.start()
        await stage.quiet()
        await stage.converge({"alice": "running"})
        assert not stage.notes.logged(events.SandboxDied), moment


async def test_lease_is_durable_before_the_create(stage: Stage):
    await stage.converge({"bob": "running"})
    stage.engine.answering["create"] = 10.0
    await stage.edit({"alice": "running", "bob": "running"})
    while f"{PREFIX}alice" not in {box.seen.name for box in stage.host.boxes.values()}:
        await stage.after(0.01)
    made = stage.seen("alice")
    await stage.crash()
    await stage.start(absent=("informer", "workers", "manifest-watch"))
    identity = stage.store.identity("alice")
    assert identity.session_key == made.session_key
    assert dict(identity.ports) == dict(made.ports)
