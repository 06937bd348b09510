import shutil
from pathlib import Path

from reconciler.core.errors import EngineError, EngineTimeout
from reconciler.telemetry.redact import redactor
from tests.fakes.host import IMAGE
from tests.simulation.stage import PREFIX, Stage


async def test_a_record_becomes_a_running_sandbox(stage: Stage):
    await stage.converge({"alice": "running", "bob": "stopped", "carol": "paused"})
    assert stage.phases() == {"alice": "running", "bob": "created", "carol": "paused"}
    assert stage.statuses() == {"alice": "RUNNING", "bob": "STOPPED", "carol": "PAUSED"}


async def test_taken_port_of_an_older_spec_is_retried_with_backoff(stage: Stage):
    await stage.converge({"alice": {"on_change": "ignore"}})
    (port,) = stage.seen("alice").ports.values()
    ports = [{"name": "OTHER", "container_port": 9000}]
    await stage.edit({"alice": {"on_change": "ignore", "ports": ports}})
    stage.host.kill("oh-agent-server-alice")
    stage.host.take_port(port)
    await stage.after(60)
    assert stage.engine.count("start") < 10
    assert stage.row("alice")["status"] == "ERROR"
    stage.host.free_port(port)
    await stage.after(60)
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_pull_always_pulls_for_each_container(stage: Stage):
    stage.host.registry.add(IMAGE)
    await stage.converge({"alice": {"pull": "always"}})
    assert stage.engine.count("pull") == 1
    await stage.converge({"alice": {"pull": "always", "env": {"A": "1"}}})
    assert stage.engine.count("pull") == 2


async def test_image_is_pulled_again_after_a_lost_create_response(stage: Stage):
    stage.host.registry.add(IMAGE)
    stage.engine.fail_next("create", EngineTimeout("no answer"), after=True)
    await stage.converge({"alice": {"pull": "always"}})
    await stage.after(30)
    assert stage.statuses() == {"alice": "RUNNING"}
    assert len(stage.host.boxes) == 1
    await stage.converge({"alice": {"pull": "always", "env": {"A": "1"}}})
    assert stage.engine.count("pull") == 2


async def test_reverted_edit_cancels_its_pull(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.host.registry.add("big:1")
    stage.engine.latency["pull"] = 3600.0
    await stage.edit({"alice": {"image": "big:1"}})
    await stage.after(5)
    assert stage.row("alice")["next"] == "pulling big:1"
    await stage.converge({"alice": "running"})
    assert not stage.manager.puller._states
    assert len(stage.host.boxes) == 1


async def test_failed_pull_during_an_action_is_recorded(stage: Stage):
    patient = {"restart": {"backoff": "60s"}}
    await stage.converge({"alice": patient})
    stage.engine.latency |= {"pull": 5.0, "stop": 10.0}
    await stage.edit({"alice": {"image": "nowhere:1", **patient}})
    await stage.after(1)
    await stage.edit({"alice": {"image": "nowhere:1", "state": "stopped", **patient}})
    await stage.after(30)
    assert stage.row("alice")["status"] == "STOPPED"
    assert "nowhere:1" in stage.row("alice")["reason"]
    assert stage.engine.count("pull") == 1


async def test_a_churn_of_sandboxes_leaves_nothing_behind(stage: Stage):
    short = {"workspace": {"path": "/w", "retain": 0}}
    known = len(redactor._counts)
    for number in range(10):
        await stage.converge({f"job-{number}": short, "stays": "running"})
    await stage.after(120)
    manager, store = stage.manager, stage.store
    assert len(stage.host.volumes) == 2
    left = {
        "hashes": manager.snapshots._hashed,
        "keys": manager.cache._by_key,
        "identities": store._identities.values,
        "memories": store._memories.values,
        "queue": manager.queue._entries,
    }
    named = {part: set(names) - {"job-9", "stays"} for part, names in left.items()}
    assert not any(named.values()), named
    assert len(stage.store.leased) == 2
    assert len(redactor._counts) - known <= 2


async def test_unremovable_orphan_leaves_no_memory(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.add_orphan("who")
    stage.engine.fail_next("remove", EngineError("busy"))
    await stage.after(400)
    assert stage.phases() == {"alice": "running"}
    assert "who" not in stage.store._memories.values


async def test_retention_counts_from_the_last_deletion(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    await stage.days(6)
    stage.host.down = True
    stage.host.end_streams()
    await stage.edit({"alice": "running", "bob": "running"})
    await stage.edit({"bob": "running"})
    stage.host.down = False
    await stage.days(2)
    assert f"openhands-workspace-{PREFIX}alice" in stage.host.volumes
    await stage.days(6)
    assert f"openhands-workspace-{PREFIX}alice" not in stage.host.volumes


async def test_freed_port_is_leased_to_a_waiting_sandbox(tmp_path: Path):
    async with Stage(tmp_path, port_range=(20000, 20000)) as stage:
        await stage.converge({"alice": "running"})
        await stage.edit({"alice": "running", "bob": "running"})
        await stage.after(10)
        assert "no host port is free" in stage.row("bob")["reason"]
        await stage.edit({"bob": "running"})
        await stage.after(70)
        assert stage.phases() == {"bob": "running"}


async def test_lost_database_leases_nothing_before_inspection(
    stage: Stage,
):
    await stage.converge({"alice": "running"})
    before, ports = stage.row("alice"), dict(stage.seen("alice").ports)
    await stage.stop()
    shutil.rmtree(stage.settings.state_dir)
    stage.engine.fail_next("inspect", EngineError("busy"), times=3)
    await stage.start()
    await stage.manager.informer.synced.wait()
    assert stage.row("alice")["session_api_key"] is None
    await stage.after(30)
    after = stage.row("alice")
    assert after["session_api_key"] == before["session_api_key"]
    assert after["container_id"] == before["container_id"]
    assert after["exposed_urls"][0]["port"] == ports[8000]
