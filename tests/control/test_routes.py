"""The routes of the control socket, over the whole reconciler on an in-memory engine."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from reconciler.control import routes
from reconciler.control.queries import Queries
from reconciler.control.routes import create_app
from reconciler.core.errors import EngineUnavailable, StoreError
from reconciler.core.priority import Priority
from reconciler.settings import Settings
from reconciler.store.store import Store
from reconciler.telemetry.recorder import Recorder
from reconciler.wiring import Manager, build
from tests.fakes.engine import FakeEngine
from tests.fakes.host import FakeHost

GOOD = """\
version: 1
specs:
  box: {image: "box:1", command: [sh, -c, "echo one; echo two; sleep 9"]}
sandboxes:
  alice: {spec: box}
  bob: {spec: box, state: stopped}
"""


@dataclass
class World:
    manager: Manager
    engine: FakeEngine
    http: httpx.AsyncClient
    desired: Path

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.http.get(f"/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, **query: Any) -> Any:
        answer = await self.http.post(f"/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def error(self, status: int, method: str, path: str) -> str:
        """Return the message of an error response."""
        answer = await self.http.request(method, f"/v1/{path}")
        assert answer.status_code == status, answer.text
        assert answer.json().keys() == {"error"}
        return str(answer.json()["error"])

    async def converge(self) -> None:
        async with asyncio.timeout(60):
            while not (await self.get("convergence"))["converged"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    desired = tmp_path / "desired.yaml"
    desired.write_text(GOOD)
    settings = Settings(desired=desired, state_dir=tmp_path / "state", rescan_interval=3600)
    engine = FakeEngine(FakeHost())
    engine.host.registry.add("box:1")
    recorder = Recorder(time.monotonic)
    store = await Store.open(
        settings.state_dir, on_trouble=lambda _: None, on_recovered=lambda: None
    )
    async with store:
        recorder.ledger = store.append
        manager = build(settings, engine=engine, store=store, recorder=recorder)
        await manager.read_manifest()
        # Without the watch, an edit is read only when a test requests it.
        roots = [root for name, root in manager.tasks.items() if name != "manifest-watch"]
        tasks = [asyncio.create_task(root()) for root in roots]
        transport = httpx.ASGITransport(create_app(manager), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://daemon") as http:
            yield World(manager, engine, http, desired)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await manager.close()


async def test_ping_names_the_desired_file_and_instance(world: World) -> None:
    assert await world.get("ping") == {"desired": str(world.desired), "instance": "default"}


async def test_status_lists_sandboxes_and_hides_keys(world: World) -> None:
    await world.converge()
    answer = await world.get("status")
    statuses = {row["name"]: row["status"] for row in answer["sandboxes"]}
    assert statuses == {"alice": "RUNNING", "bob": "STOPPED"}
    assert answer["engine"]["reachable"]
    (row,) = (await world.get("status", name="alice", secrets=True))["sandboxes"]
    assert row["session_api_key"]
    assert row["session_api_key"] not in (await world.http.get("/v1/status")).text
    assert (await world.get("status", name="nobody"))["sandboxes"] == []


async def test_plan_reports_errors_of_the_file(world: World) -> None:
    await world.converge()
    assert (await world.get("plan"))["in_sync"]
    world.desired.write_text(GOOD + "  carol: {spec: box}\n  bad: {spec: nope}\n")
    await world.post("reload")
    assert (await world.get("plan"))["errors"][0].startswith(f"{world.desired}:8:")


async def test_reload_reports_changes_and_held_deletions(world: World) -> None:
    world.desired.write_text(GOOD.replace("state: stopped", "state: paused") + "  eve: {spec: box}")
    answer = await world.post("reload")
    assert (answer["added"], answer["changed"], answer["removed"]) == (["eve"], ["bob"], [])
    world.desired.write_text("")
    held_deletions = await world.post("reload")
    assert held_deletions["awaiting_confirmation"] == ["alice", "bob", "eve"]
    assert held_deletions["removed"] == []
    world.desired.write_text("version: 1\nsandboxes: {}\n")
    confirmed = await world.post("reload", allow_mass_delete=True)
    assert confirmed["removed"] == ["alice", "bob", "eve"]


async def test_events_are_paged(world: World) -> None:
    await world.converge()
    entries = await world.get("events", sandbox="alice")
    assert entries[0]["event"] == "record.added"
    rest = await world.get("events", sandbox="alice", after=entries[0]["id"], limit=1)
    assert rest == [entries[1]]


async def test_export_is_a_valid_desired_file(world: World) -> None:
    answer = await world.http.get("/v1/export")
    assert answer.headers["content-type"].startswith("application/yaml")
    assert yaml.safe_load(answer.text)["sandboxes"].keys() == {"alice", "bob"}


async def test_gc_without_garbage_is_empty(world: World) -> None:
    await world.converge()
    assert await world.post("gc", dry_run=True) == []
    assert await world.post("gc") == []


async def test_logs_are_plain_text(world: World) -> None:
    await world.converge()
    assert (await world.http.get("/v1/logs/alice")).text == "one\ntwo\n"
    assert (await world.http.get("/v1/logs/alice?tail=1")).text == "two\n"
    assert "nobody" in await world.error(404, "GET", "logs/nobody")


async def test_lost_engine_is_never_in_sync(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.converge()
    monkeypatch.setattr(routes, "_PATIENCE", 0.05)
    world.manager.informer.synced.clear()
    world.manager.informer.error = "engine down"
    assert await world.error(503, "GET", "plan") == "engine down"
    state = await world.get("convergence")
    assert (state["converged"], state["engine_error"]) == (False, "engine down")
    world.engine.fail_next("log_tail", EngineUnavailable("engine down"))
    assert await world.error(503, "GET", "logs/alice") == "engine down"


async def test_stale_sandbox_is_not_converged(world: World) -> None:
    await world.converge()
    world.manager.cache.request_listing("alice")
    state = await world.get("convergence")
    assert (state["converged"], state["pending"]) == (False, ["alice"])
    world.manager.queue.add("alice", Priority.EVENT)
    await world.converge()


async def test_errors_have_a_status_and_a_message(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "limit" in await world.error(422, "GET", "events?limit=0")
    assert "tail" in await world.error(422, "GET", "logs/alice?tail=many")
    assert await world.error(404, "GET", "nothing") == "Not Found"
    assert await world.error(405, "POST", "status") == "Method Not Allowed"

    async def refuse(*_: object, **__: object) -> None:
        raise StoreError("the disk is gone")

    monkeypatch.setattr(world.manager.store, "events", refuse)
    assert await world.error(500, "GET", "events") == "the disk is gone"

    def fail(*_: object, **__: object) -> None:
        raise LookupError("lost")

    monkeypatch.setattr(Queries, "export", fail)
    assert "internal error" in await world.error(500, "GET", "export")
