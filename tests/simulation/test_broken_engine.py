"""Invalid responses and events of the engine."""

import asyncio
from pathlib import Path

from reconciler.engine.protocol import EngineEvent, EventKind
from reconciler.telemetry import events
from tests.simulation.stage import PREFIX, Stage

FLOOD = 5000


async def test_events_with_unknown_names_leave_nothing_behind(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        await stage.converge({"alice": "running"})
        manager, lists = stage.manager, stage.engine.count("list")
        for number in range(FLOOD):
            event = EngineEvent(EventKind.CONTAINER, f"{number:064x}", "start", f"x{number}", 0.0)
            manager.informer.handle(event)
        assert len(manager.queue) <= 1
        assert manager.cache.keys() == {"alice"}
        await stage.after(3)
        assert stage.engine.count("list") == lists + 1
        await stage.quiet()
        assert stage.statuses() == {"alice": "RUNNING"}


async def test_events_with_unknown_ids_leave_nothing_behind(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        await stage.converge({"alice": "running"})
        looks = stage.engine.count("inspect")
        for number in range(FLOOD):
            event = EngineEvent(EventKind.CONTAINER, f"{number:064x}", "start", "alice", 0.0)
            stage.manager.informer.handle(event)
        await stage.quiet()
        assert stage.engine.count("inspect") < looks + 200
        assert stage.statuses() == {"alice": "RUNNING"}


async def test_unknown_container_is_found_by_its_event(tmp_path: Path):
    async with Stage(tmp_path, gc_grace=1000) as stage:
        await stage.converge({"alice": "running"})
        stage.add_orphan("gone")
        await stage.after(2)
        assert stage.manager.cache.has("gone")


async def test_one_unreadable_container_leaves_the_others(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        await stage.converge({"alice": "running", "bob": "running"})
        stage.engine.unreadable.add(f"{PREFIX}alice")
        stage.host.kill(f"{PREFIX}alice")
        stage.host.kill(f"{PREFIX}bob")
        await stage.after(120)
        assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}
        assert stage.row("alice")["reason"].startswith("last known")
        assert stage.queries.convergence()["pending"] == ["alice"]
        assert "cannot be decoded" in stage.row("alice")["reason"]
        assert len(stage.notes.logged(events.EngineUnreadable)) == 1
        assert stage.manager.informer.synced.is_set()
        stage.engine.unreadable.clear()
        await stage.after(120)
        assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}


async def test_unreadable_container_is_not_recreated_or_collected(tmp_path: Path):
    async with Stage(tmp_path, gc_grace=1) as stage:
        await stage.converge({"alice": "running", "bob": "running"})
        before = stage.seen("alice").id
        await stage.stop()
        stage.engine.unreadable.add(f"{PREFIX}alice")
        stage.write({"alice": "running", "bob": "running"})
        await stage.start()
        await asyncio.sleep(300)
        assert stage.seen("alice").id == before
        assert stage.statuses() == {"alice": "UNKNOWN", "bob": "RUNNING"}
        assert [call for call in stage.engine.changes if "alice" in call[1]].count(
            ("create", f"{PREFIX}alice")
        ) == 1
