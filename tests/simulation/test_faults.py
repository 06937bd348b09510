"""Faults from every source: status, log and ledger agree."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from reconciler.core.errors import EngineError, EngineTimeout, Refused
from reconciler.core.priority import Priority
from reconciler.telemetry import events
from tests.fakes.host import IMAGE
from tests.simulation.stage import PREFIX, Stage

Do = Callable[[Stage], Awaitable[None]]
QUICK = {"restart": {"backoff": "1s", "max_backoff": "5s"}}


@dataclass(frozen=True)
class Trouble:
    """One way into a fault and out of it; ``runs``: a container runs meanwhile."""

    source: str
    words: str
    begin: Do
    end: Do
    runs: bool = False


def env_file(stage: Stage) -> Path:
    return stage.file.parent / "llm.env"


async def break_env_file(stage: Stage) -> None:
    env_file(stage).write_text("not a line\n")
    await stage.edit({"alice": {**QUICK, "env_file": str(env_file(stage))}})


async def lose_env_file_of_one_that_runs(stage: Stage) -> None:
    env_file(stage).write_text("A=1\n")
    await stage.converge({"alice": {**QUICK, "env_file": str(env_file(stage))}})
    env_file(stage).unlink()
    await stage.manager.manifest_sync.read()


async def mend_env_file(stage: Stage) -> None:
    env_file(stage).write_text("A=1\n")
    await stage.manager.manifest_sync.read()


async def want_absent_image(stage: Stage) -> None:
    await stage.edit({"alice": {**QUICK, "image": "nowhere:1"}})


async def want_absent_image_for_one_that_runs(stage: Stage) -> None:
    await stage.converge({"alice": QUICK})
    await want_absent_image(stage)


async def push_image(stage: Stage) -> None:
    stage.host.registry.add("nowhere:1")


async def write_invalid_record(stage: Stage) -> None:
    await stage.edit({"alice": {"image": 7}})


async def spoil_record_of_one_that_runs(stage: Stage) -> None:
    await stage.converge({"alice": QUICK})
    await write_invalid_record(stage)


async def correct_record(stage: Stage) -> None:
    await stage.edit({"alice": QUICK})


async def fill_disk(stage: Stage) -> None:
    stage.disks.state = 0.1
    await stage.after(10)
    await stage.edit({"alice": QUICK})


async def empty_disk(stage: Stage) -> None:
    stage.disks.state = 50.0


async def refuse_create(stage: Stage) -> None:
    stage.engine.fail_next("create", Refused("bad mount"), times=9)
    await stage.edit({"alice": QUICK})


async def refuse_start(stage: Stage) -> None:
    stage.engine.fail_next("start", EngineError("no cgroup"), times=9)
    await stage.edit({"alice": QUICK})


async def time_out_at_create(stage: Stage) -> None:
    stage.engine.fail_next("create", EngineTimeout("no answer"), times=4)
    await stage.edit({"alice": QUICK})


async def refuse_inspection(stage: Stage) -> None:
    await stage.converge({"alice": QUICK})
    stage.engine.unreadable.add(f"{PREFIX}alice")
    stage.manager.cache.mark_dirty("alice", stage.seen("alice").id)
    stage.manager.queue.add("alice", Priority.EVENT)


async def allow_inspection(stage: Stage) -> None:
    stage.engine.unreadable.clear()


async def wait(stage: Stage) -> None:
    await stage.after(30)


TROUBLES = {
    "env file": Trouble("env_file", "NAME=value", break_env_file, mend_env_file),
    "env file, runs": Trouble(
        "env_file", "does not exist", lose_env_file_of_one_that_runs, mend_env_file, runs=True
    ),
    "image": Trouble("pull", "nowhere:1", want_absent_image, push_image),
    "image, runs": Trouble(
        "pull", "nowhere:1", want_absent_image_for_one_that_runs, push_image, runs=True
    ),
    "record": Trouble("record", "desired.yaml:", write_invalid_record, correct_record),
    "record, runs": Trouble(
        "record", "desired.yaml:", spoil_record_of_one_that_runs, correct_record, runs=True
    ),
    "disk": Trouble("disk", "disk", fill_disk, empty_disk),
    "create": Trouble("create", "bad mount", refuse_create, wait),
    "start": Trouble("start", "no cgroup", refuse_start, wait),
    "timeout": Trouble("create", "no answer", time_out_at_create, wait),
    "inspect": Trouble("inspect", "", refuse_inspection, allow_inspection, runs=True),
}


def told(stage: Stage, event: type[events.Event]) -> list[dict]:
    return stage.notes.logged(event, sandbox="alice")


async def in_ledger(stage: Stage, event: type[events.Event]) -> list[dict]:
    entries = await stage.store.events("alice")
    return [dict(entry.data) for entry in entries if entry.event == event.event_name]


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
async def test_fault_is_reported_once_at_its_begin_and_end(stage: Stage, trouble: Trouble):
    stage.write({})
    await stage.start()
    await stage.quiet()
    await trouble.begin(stage)
    await stage.after(3)
    row = stage.row("alice")
    assert trouble.words in row["reason"]
    (began,) = told(stage, events.SandboxError)
    assert began["source"] == trouble.source
    assert began["error"] in row["reason"]
    assert await in_ledger(stage, events.SandboxError) == [
        {"error": began["error"], "source": trouble.source}
    ]
    if trouble.runs:
        assert row["status"] == "RUNNING"
    assert not told(stage, events.SandboxRecovered)
    assert stage.queries.convergence()["pending"] == ["alice"]
    plan = stage.queries.plan()
    assert not plan["in_sync"]
    (change,) = plan["changes"]
    assert change["actions"] or trouble.words in change["waiting_for"]
    await trouble.end(stage)
    await stage.after(120)
    assert stage.statuses() == {"alice": "RUNNING"}
    assert stage.row("alice")["reason"] == ""
    (over,) = told(stage, events.SandboxRecovered)
    assert (over["after"], over["source"]) == (began["error"], trouble.source)
    assert len(await in_ledger(stage, events.SandboxRecovered)) == 1
    assert len(told(stage, events.SandboxError)) == 1
    assert stage.queries.plan()["in_sync"]


async def test_used_up_ports_are_a_fault(tmp_path: Path):
    async with Stage(tmp_path, port_range=(20000, 20001)) as stage:
        stage.write({})
        await stage.start()
        await stage.edit({"bob": QUICK, "carol": QUICK})
        await stage.quiet()
        await stage.edit({"bob": QUICK, "carol": QUICK, "alice": QUICK})
        await stage.after(5)
        (began,) = told(stage, events.SandboxError)
        assert began["source"] == "ports"
        assert (stage.row("alice")["status"], stage.row("alice")["reason"]) == (
            "ERROR",
            began["error"],
        )
        await stage.edit({"carol": QUICK, "alice": QUICK})
        await stage.after(400)
        assert stage.statuses()["alice"] == "RUNNING"
        assert len(told(stage, events.SandboxRecovered)) == 1


async def test_a_fault_is_not_reported_again_by_the_next_daemon(stage: Stage):
    stage.write({})
    await stage.start()
    await break_env_file(stage)
    await stage.after(3)
    await stage.restart()
    await stage.after(30)
    assert len(told(stage, events.SandboxError)) == 1
    await mend_env_file(stage)
    await stage.after(30)
    assert len(told(stage, events.SandboxRecovered)) == 1


async def test_a_deleted_sandbox_did_not_recover(stage: Stage):
    await stage.converge({"bob": QUICK})
    stage.engine.fail_next("create", Refused("bad mount"), times=99)
    await stage.edit({"bob": QUICK, "alice": QUICK})
    await stage.after(5)
    await stage.edit({"bob": QUICK})
    await stage.after(60)
    assert len(told(stage, events.SandboxError)) == 1
    assert not told(stage, events.SandboxRecovered)


async def test_unhealthy_start_is_no_recovery(stage: Stage):
    probe = {"kind": "exec", "command": ["false"], "startup_grace": "60s"}
    stage.engine.fail_next("create", Refused("bad mount"))
    await stage.edit_or_start({"alice": {**QUICK, "health": probe}})
    await stage.after(30)
    assert stage.row("alice")["status"] == "STARTING"
    assert len(told(stage, events.SandboxError)) == 1
    assert not told(stage, events.SandboxRecovered)


async def test_repeated_failures_are_summarized(stage: Stage):
    ids = [f"{number:064x}" for number in range(40)]
    stage.write({})
    await stage.start()
    for id_ in ids:
        stage.engine.fail_next("create", Refused(f"endpoint {id_} is gone"))
    await stage.edit({"alice": QUICK})
    await stage.after(150)
    assert len(told(stage, events.SandboxError)) == 1
    repeats = told(stage, events.ActionFailed)
    assert 2 <= len(repeats) <= 4
    assert all(line["repeated"] for line in repeats[1:])


async def test_one_invalid_record_is_no_fault_of_the_others(stage: Stage):
    await stage.converge({"alice": QUICK, "bob": QUICK})
    await stage.edit({"alice": {"image": 7}, "bob": QUICK})
    await stage.after(5)
    assert len(stage.notes.logged(events.SandboxError)) == 1
    stage.file.write_text("version: [")
    await stage.manager.manifest_sync.read()
    await stage.after(5)
    assert len(stage.notes.logged(events.SandboxError)) == 1


async def test_a_record_that_was_never_valid_is_shown(stage: Stage):
    await stage.edit_or_start({"alice": {"image": 7}, "bob": QUICK})
    await stage.after(5)
    row = stage.row("alice")
    assert (row["desired"], row["status"]) == ("held", "ERROR")
    await stage.edit({"bob": QUICK})
    await stage.after(5)
    assert stage.statuses() == {"bob": "RUNNING"}
    (over,) = told(stage, events.SandboxRecovered)
    assert over["cause"] == "it is no longer declared"
    assert not stage.store.memory("alice").faults


async def test_restored_image_ends_the_fault(stage: Stage):
    await stage.edit_or_start({"alice": {**QUICK, "image": "nowhere:1", "pull": "never"}})
    await stage.after(5)
    assert len(told(stage, events.SandboxError)) == 1
    await stage.edit({"alice": {**QUICK, "image": IMAGE}})
    await stage.after(5)
    assert [line["cause"] for line in told(stage, events.SandboxRecovered)] == ["it is RUNNING"]
