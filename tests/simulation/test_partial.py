"""An engine that forbids parts of its API."""

from pathlib import Path

import pytest

from reconciler.telemetry import events
from tests.simulation.stage import PREFIX, Stage

BARE = {"workspace": None}
VOLUMES = {"create_volume", "remove_volume", "inspect_volume"}
CHANGES = {
    *("create", "start", "stop", "pause", "unpause", "rename", "remove", "prepare"),
    *("create_volume", "remove_volume", "pull", "remove_image", "run_in"),
}


async def test_without_events_changes_are_found_by_lists(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        stage.engine.denied["EVENTS"] = {"events"}
        await stage.converge({"alice": "running"})
        stage.host.kill(f"{PREFIX}alice")
        await stage.after(30)
        assert stage.statuses() == {"alice": "RUNNING"}
        assert stage.seen("alice").started_at is not None
        assert len(stage.notes.logged(events.SandboxDied)) == 1
        (said,) = stage.notes.logged(events.EngineForbidden)
        assert said["part"] == "EVENTS"
        assert not stage.notes.logged(events.EngineStreamLost)
        stage.engine.denied.clear()
        await stage.after(120)
        assert stage.notes.logged(events.EngineAllowed, part="EVENTS")
        stage.host.kill(f"{PREFIX}alice")
        await stage.after(2)
        assert len(stage.notes.logged(events.SandboxDied)) == 2
        assert not stage.notes.logged(events.EngineLost)


async def test_lost_engine_is_noticed_without_events(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        stage.engine.denied["EVENTS"] = {"events"}
        await stage.converge({"alice": "running"})
        stage.host.stop_engine()
        await stage.after(30)
        assert stage.notes.logged(events.EngineLost)
        stage.host.start_engine()
        await stage.quiet()
        assert stage.statuses() == {"alice": "RUNNING"}


async def test_without_volumes_sandboxes_without_a_workspace_work(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        stage.engine.denied["VOLUMES"] = VOLUMES
        await stage.converge({"alice": BARE, "bob": {}})
        assert stage.statuses() == {"alice": "RUNNING", "bob": "ERROR"}
        assert "VOLUMES=1" in stage.row("bob")["reason"]
        await stage.after(600)
        assert len(stage.notes.logged(events.EngineForbidden)) == 1
        assert stage.engine.count("create_volume") < 40
        stage.engine.denied.clear()
        await stage.after(120)
        assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}


@pytest.mark.parametrize("restarted", [False, True])
async def test_unlisted_volume_is_neither_lost_nor_an_orphan(tmp_path: Path, *, restarted: bool):
    async with Stage(tmp_path) as stage:
        await stage.converge({"alice": {}, "bob": {}, "carol": {}, "dave": {}})
        await stage.converge({"alice": {}, "bob": "stopped", "carol": {}})
        before, volumes = stage.seen("alice").id, set(stage.host.volumes)
        await stage.after(60)
        orphans = dict(stage.store.orphans["volume"])
        stage.engine.denied["VOLUMES"] = VOLUMES
        if restarted:
            await stage.restart()
        await stage.after(120)
        await stage.days(30)
        assert stage.seen("alice").id == before
        assert stage.statuses() == {"alice": "RUNNING", "bob": "STOPPED", "carol": "RUNNING"}
        assert set(stage.host.volumes) == volumes
        assert stage.store.orphans["volume"] == orphans
        assert len(orphans) == 1
        stage.engine.denied.clear()
        await stage.after(120)
        assert volumes - set(stage.host.volumes) == set(orphans)


async def test_read_only_everything_is_pending_with_one_error(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        stage.engine.denied["POST"] = CHANGES
        await stage.edit_or_start({f"s{number}": BARE for number in range(10)})
        await stage.after(300)
        assert set(stage.statuses().values()) == {"ERROR"}
        assert all("POST=1" in stage.row(f"s{number}")["reason"] for number in range(10))
        assert len(stage.notes.logged(events.EngineForbidden)) == 1
        assert not stage.notes.logged(events.ActionFailed)
        assert not stage.notes.logged(events.EngineLost)
        stage.engine.denied.clear()
        await stage.after(120)
        assert set(stage.statuses().values()) == {"RUNNING"}


async def test_without_images_a_present_image_is_used(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        stage.engine.denied["IMAGES"] = {"has_image", "image_id", "images", "pull", "remove_image"}
        absent = {**BARE, "image": "registry.test/absent:1"}
        await stage.converge({"alice": BARE, "bob": absent})
        assert stage.statuses() == {"alice": "RUNNING", "bob": "ERROR"}
        assert "IMAGES=1" in stage.row("bob")["reason"]


async def test_without_info_everything_works(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        stage.engine.denied["INFO"] = {"info"}
        await stage.converge({"alice": {}})
        assert stage.statuses() == {"alice": "RUNNING"}
        assert stage.notes.logged(events.EngineConnected)


async def test_forbidden_container_list_concludes_nothing(tmp_path: Path):
    async with Stage(tmp_path, gc_grace=1) as stage:
        await stage.converge({"alice": {}})
        stage.add_orphan("gone")
        stage.engine.denied["CONTAINERS"] = {"list", "inspect", "log_tail", "follow_logs"}
        await stage.restart()
        changes = len(stage.engine.changes)
        await stage.after(600)
        assert len(stage.engine.changes) == changes
        assert "CONTAINERS=1" in stage.notes.logged(events.EngineLost)[0]["error"]


async def test_forbidden_exec_leaves_health_unknown(tmp_path: Path):
    health = {"kind": "exec", "command": ["true"], "startup_grace": "1s", "failures": 1}
    async with Stage(tmp_path) as stage:
        await stage.converge({"alice": {**BARE, "health": health}})
        assert stage.statuses() == {"alice": "RUNNING"}
        started = stage.seen("alice").started_at
        stage.engine.denied["EXEC"] = {"run_in"}
        await stage.after(600)
        assert stage.seen("alice").started_at == started
        assert stage.statuses() == {"alice": "RUNNING"}


async def test_engine_warnings_are_logged_once(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        await stage.converge({"alice": BARE})
        stage.engine.warned += ["no memory limit", "no cpu limit"]
        await stage.after(60)
        said = [line["warning"] for line in stage.notes.logged(events.EngineWarning)]
        assert said == ["no memory limit", "no cpu limit"]
