import json

import pytest

from reconciler.core.errors import EngineError
from reconciler.core.units import iso
from tests.simulation.stage import PREFIX, Stage

ROW = {
    *("id", "name", "spec", "image", "desired", "status", "reason", "next", "exposed_urls"),
    *("created_at", "started_at", "container_id", "restarts", "volumes", "last_exit"),
}


async def test_status_row_has_the_documented_fields(stage: Stage):
    await stage.converge({"alice": "running"})
    (row,) = stage.queries.sandboxes()
    assert row.keys() >= ROW
    seen = stage.seen("alice")
    (port,) = seen.ports.values()
    assert row["id"] == f"{PREFIX}alice"
    assert (row["name"], row["spec"], row["desired"]) == ("alice", "plain", "running")
    assert row["exposed_urls"] == [
        {"name": "HTTP", "url": f"http://localhost:{port}", "port": port}
    ]
    assert row["container_id"] == seen.id
    assert row["volumes"] == [f"openhands-workspace-{PREFIX}alice"]
    assert row["created_at"] == iso(seen.created_at)
    assert row["last_exit"] is None


async def test_sandbox_is_found_by_name_and_container_name(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    for name in ("alice", f"{PREFIX}alice"):
        assert [row["name"] for row in stage.queries.sandboxes(name)] == ["alice"]
    assert stage.queries.sandboxes("nobody") == []


async def test_keys_are_shown_only_on_request(stage: Stage):
    await stage.converge({"alice": "running"})
    key = stage.seen("alice").session_key
    answers = stage.queries
    assert (await answers.status(secrets=True))["sandboxes"][0]["session_api_key"] == key
    told = [
        await answers.status(),
        answers.plan(),
        answers.garbage(),
        answers.export(),
        await answers.events(),
        stage.queries.convergence(),
        repr(stage.manager.snapshots.snapshot("alice")),
        repr(stage.store.records["alice"]),
    ]
    assert key not in json.dumps(told)


async def test_former_sandbox_shows_its_last_exit(stage: Stage):
    await stage.converge({"alice": {"command": ["sh", "-c", "echo so long; exit 3"]}})
    last = stage.row("alice")["last_exit"]
    assert (last["exit_code"], last["oom_killed"]) == (3, False)
    assert last["log_tail"][-1] == "so long"
    assert last["reason"] == "exit code 3"
    assert last["at"].endswith("Z")


async def test_plan_changes_nothing(stage: Stage):
    stage.write({"alice": "running"})
    await stage.start(absent=("workers", "manifest-watch"))
    await stage.after(1)
    plan = stage.queries.plan()
    assert not plan["in_sync"]
    (change,) = plan["changes"]
    assert [action["verb"] for action in change["actions"]] == ["create-volume", "create", "start"]
    assert all(action["cause"] for action in change["actions"])
    assert stage.engine.changes == []


async def test_a_converged_host_has_an_empty_plan(stage: Stage):
    await stage.converge({"alice": "running", "bob": "paused", "carol": "stopped"})
    plan = stage.queries.plan()
    assert (plan["in_sync"], plan["changes"]) == (True, [])
    converged = stage.queries.convergence()
    assert converged == {
        "converged": True,
        "total": 3,
        "pending": [],
        "hopeless": False,
        "engine_error": None,
    }


async def test_convergence_is_hopeless_when_all_pending_fail(stage: Stage):
    stage.engine.fail_next("create", EngineError("no"), times=100)
    await stage.edit_or_start({"alice": "running"})
    await stage.after(1)
    assert stage.queries.convergence()["pending"] == ["alice"]
    assert not stage.queries.convergence()["hopeless"]
    await stage.after(30)
    assert stage.queries.convergence()["hopeless"]


async def test_sandbox_in_deletion_is_shown(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    stage.engine.hang("stop")
    await stage.edit({"bob": "running"})
    await stage.after(1)
    assert stage.row("alice")["desired"] == "deleted"
    assert stage.queries.convergence()["pending"] == ["alice"]
    stage.engine.release("stop")
    await stage.quiet()
    assert stage.statuses() == {"bob": "RUNNING"}


async def test_urls_without_a_network_and_on_the_host_network(stage: Stage):
    await stage.converge(
        {"alice": {"network": {"mode": "none"}}, "bob": {"network": {"mode": "host"}}}
    )
    assert stage.row("alice")["exposed_urls"] == []
    assert stage.row("bob")["exposed_urls"][0]["port"] == 8000


async def test_queries_return_json(stage: Stage):
    await stage.converge({"alice": {"command": ["false"]}, "bob": "paused"})
    answers = stage.queries
    told = [await answers.status(), answers.plan(), answers.garbage(), await answers.events()]
    assert json.loads(json.dumps(told)) == told


def test_times_are_in_utc():
    assert iso(0.5) == "1970-01-01T00:00:00.500Z"
    assert iso(None) is None


async def statuses_during(stage: Stage, seconds: float) -> set[tuple[str, str]]:
    seen = set()
    for _ in range(round(seconds / 0.05)):
        await stage.after(0.05)
        row = stage.row("alice")
        seen.add((row["status"], row["reason"]))
    return seen


HEALTH = {"kind": "exec", "command": ["true"], "interval": "1s", "startup_grace": "2s"}


@pytest.mark.parametrize("edit", [{"env": {"V": "2"}}, {"health": HEALTH, "env": {"V": "2"}}])
async def test_our_own_stop_is_never_shown_as_an_error(stage: Stage, edit: dict[str, object]):
    await stage.converge({"alice": "running"})
    for verb in ("inspect", "inspect_volume", "log_tail", "list"):
        stage.engine.latency[verb] = 0.3
    await stage.edit({"alice": edit})
    shown = await statuses_during(stage, 20)
    assert {status for status, _ in shown} <= {"RUNNING", "STARTING", "MISSING"}, shown
    assert stage.row("alice")["status"] == "RUNNING"


async def test_our_own_stop_is_never_shown_as_an_error_after_a_kill(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.engine.answering["stop"] = 3600.0
    await stage.edit({"alice": {"env": {"V": "2"}}})
    await stage.after(30)
    await stage.crash()
    stage.engine.answering.clear()
    for verb in ("inspect", "inspect_volume", "log_tail", "list"):
        stage.engine.latency[verb] = 0.3
    await stage.start()
    shown = await statuses_during(stage, 20)
    assert "ERROR" not in {status for status, _ in shown}, shown
