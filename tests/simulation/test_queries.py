"""Queries of commands: logs, plans, collections and status."""

import asyncio
from pathlib import Path

import pytest

from reconciler.core.errors import EngineError, EngineUnavailable, NotFound, Refused
from tests.simulation.stage import Stage

CRASHING = {"command": ["sh", "-c", "exit 3"], "restart": {"backoff": "60s", "max_backoff": "60s"}}


async def logs(stage: Stage, name: str) -> None:
    await stage.queries.logs(name, tail=10, follow=False)


async def test_missing_log_has_a_reason(stage: Stage):
    stage.engine.fail_next("create", Refused("bad mount"), times=99)
    await stage.edit_or_start({"alice": "running"})
    await stage.after(3)
    with pytest.raises(NotFound, match="no sandbox is named nobody"):
        await logs(stage, "nobody")
    with pytest.raises(NotFound, match=r"alice: it has no container yet: .*bad mount"):
        await logs(stage, "alice")
    stage.host.down = True
    stage.host.end_streams()
    await stage.after(3)
    with pytest.raises(EngineUnavailable, match="alice: the engine is unreachable"):
        await logs(stage, "alice")


async def test_nothing_is_missing_before_the_first_list(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.stop()
    stage.host.down = True
    await stage.start()
    await stage.after(30)
    row = stage.row("alice")
    assert row["status"] == "UNKNOWN"
    assert row["reason"].startswith("the engine is unreachable: ")
    stage.host.down = False
    await stage.after(30)
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_a_lost_engine_leaves_the_last_known_status(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.host.down = True
    stage.host.end_streams()
    await stage.after(3)
    await stage.edit({"alice": "running", "bob": "running"})
    assert stage.statuses() == {"alice": "RUNNING", "bob": "UNKNOWN"}
    assert "the engine is unreachable" in stage.row("alice")["reason"]


async def test_plan_names_the_wait_of_a_failing_sandbox(stage: Stage):
    await stage.converge({"alice": CRASHING})
    await stage.after(30)
    assert stage.row("alice")["status"] == "ERROR"
    plan = stage.queries.plan()
    assert not plan["in_sync"]
    (change,) = plan["changes"]
    assert change["actions"] == []
    assert change["waiting_for"].startswith("restart backoff: ")


async def test_a_plan_of_an_invalid_file_is_not_in_sync(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.file.write_text("version: [")
    await stage.manager.manifest_sync.read()
    plan = stage.queries.plan()
    assert plan["errors"]
    assert not plan["in_sync"]


async def test_a_plan_with_deletions_to_confirm_is_not_in_sync(stage: Stage):
    await stage.converge({f"job-{number}": "stopped" for number in range(6)})
    await stage.edit({})
    plan = stage.queries.plan()
    assert len(plan["awaiting_confirmation"]) == 6
    assert not plan["in_sync"]


async def test_plan_leaves_orphans_to_the_collection(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.add_orphan("stray")
    await stage.after(61)
    assert stage.queries.plan()["in_sync"]


@pytest.fixture
async def littered(tmp_path: Path):
    async with Stage(tmp_path, gc_grace=0.0) as stage:
        yield stage


async def test_a_collection_waits_for_the_removals(littered: Stage):
    stage = littered
    await stage.converge({"alice": "running"})
    stage.engine.latency["remove"] = 5.0
    stage.engine.hang("remove")
    stage.add_orphan("stray")
    await stage.after(61)
    collecting = asyncio.create_task(stage.operations.collect())
    await stage.after(1)
    assert not collecting.done()
    stage.engine.release("remove")
    (row,) = await collecting
    assert (row["sandbox"], row["due"]) == ("stray", True)
    assert (row["removed"], row["error"]) == (True, None)
    assert "stray" not in stage.phases()


async def test_collection_reports_unremovable_objects(littered: Stage):
    stage = littered
    await stage.converge({"alice": "running"})
    stage.engine.fail_next("remove", EngineError("device or resource busy"), times=999)
    stage.add_orphan("stray")
    await stage.after(61)
    (row,) = await stage.operations.collect()
    assert (row["due"], row["removed"]) == (True, False)
    assert "busy" in row["error"]
    (row,) = stage.queries.garbage()
    assert (row["removed"], row["error"]) == (False, None)
