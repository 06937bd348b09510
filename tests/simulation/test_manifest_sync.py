from pathlib import Path

import pytest

from reconciler.telemetry import events
from tests.fakes.host import IMAGE
from tests.simulation.stage import Stage

FOUR = dict.fromkeys(("a", "b", "c", "d"), "running")


async def read(stage: Stage, text: str):
    stage.file.write_text(text, encoding="utf-8")
    return await stage.manager.manifest_sync.read()


async def test_edited_fields_are_logged(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    reading = await stage.edit({"alice": "paused", "carol": "running"})
    assert (reading.added, reading.changed, reading.removed) == ({"carol"}, {"alice"}, {"bob"})
    for event, name in (
        (events.RecordAdded, "carol"),
        (events.RecordChanged, "alice"),
        (events.RecordDeleted, "bob"),
    ):
        assert len(stage.notes.logged(event, sandbox=name)) >= 1


async def test_unchanged_file_is_not_logged(stage: Stage):
    await stage.converge({"alice": "running"})
    lines = len(stage.notes.lines)
    for _ in range(5):
        await stage.edit({"alice": "running"})
    assert len(stage.notes.lines) == lines


async def test_invalid_file_changes_nothing_and_is_logged_once(stage: Stage):
    await stage.converge({"alice": "running"})
    for _ in range(5):
        reading = await read(stage, "version: 1\nsandboxes: {alice: [}\n")
    assert [str(d).startswith(f"{stage.file}:2:") for d in reading.diagnostics] == [True]
    assert stage.manager.manifest_sync.is_held("anybody")
    await stage.after(600)
    assert stage.phases() == {"alice": "running"}
    (line,) = stage.notes.logged(events.ManifestRejected)
    assert line["location"].startswith(f"{stage.file}:2:")
    await stage.edit({"alice": "running"})
    assert not stage.manager.manifest_sync.diagnostics
    assert not stage.manager.manifest_sync.is_held("anybody")


async def test_invalid_record_is_held_and_others_continue(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"alice": {"state": "asleep"}, "bob": "paused"})
    assert stage.phases() == {"alice": "running", "bob": "paused"}
    assert stage.manager.manifest_sync.is_held("alice")
    assert not stage.manager.manifest_sync.is_held("bob")
    assert len(stage.notes.logged(events.ManifestHeld)) == 1


async def test_objects_of_an_unreadable_record_are_no_orphans(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.stop()
    (stage.settings.state_dir / "state.db").unlink(missing_ok=True)
    for path in stage.settings.state_dir.iterdir():
        path.unlink()
    await stage.converge({"alice": {"state": "asleep"}, "bob": "running"})
    await stage.after(3600)
    assert stage.phases() == {"alice": "running", "bob": "running"}


async def test_many_deletions_wait_until_they_are_confirmed(stage: Stage):
    await stage.converge({**FOUR, "stays": "running"})
    for _ in range(3):
        reading = await stage.edit({"stays": "paused"})
    assert reading.held_deletions == tuple(FOUR)
    await stage.after(60)
    assert stage.phases() == {**FOUR, "stays": "paused"}
    (line,) = stage.notes.logged(events.ManifestBrake)
    assert line["deletions"] == 4
    await stage.manager.manifest_sync.read(allow_mass_delete=True)
    await stage.quiet()
    assert stage.phases() == {"stays": "paused"}
    assert len(stage.notes.logged(events.ManifestBrakeReleased)) == 1


async def test_mass_delete_guard_is_released_when_records_return(stage: Stage):
    await stage.converge({**FOUR, "stays": "running"})
    await stage.edit({"stays": "running"})
    assert stage.manager.manifest_sync.held_deletions
    await stage.edit({**FOUR, "stays": "running"})
    assert not stage.manager.manifest_sync.held_deletions


@pytest.mark.parametrize("text", ["", "# nothing\n", None], ids=["empty", "a comment", "gone"])
async def test_an_empty_file_deletes_nothing_until_it_is_confirmed(stage: Stage, text: str | None):
    await stage.converge({"alice": "running"})
    stage.file.unlink()
    if text is not None:
        stage.file.write_text(text, encoding="utf-8")
    reading = await stage.manager.manifest_sync.read()
    assert reading.held_deletions == ("alice",)
    await stage.after(3600)
    assert stage.phases() == {"alice": "running"}
    await stage.manager.manifest_sync.read(allow_mass_delete=True)
    await stage.quiet()
    assert stage.phases() == {}


async def test_deliberately_empty_file_is_accepted(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.converge({})
    assert stage.phases() == {}


async def test_no_orphans_before_the_first_valid_file(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.stop()
    for path in stage.settings.state_dir.iterdir():
        path.unlink()
    stage.file.write_text("version: 2\n", encoding="utf-8")
    await stage.start()
    await stage.after(3600)
    assert stage.phases() == {"alice": "running"}


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_fixed_file_is_logged_once(stage: Stage, state: str):
    await stage.converge({"alice": "running"})
    stage.file.write_text("{")
    await stage.manager.manifest_sync.read()
    said = len(stage.notes.logged(events.ManifestLoaded))
    await stage.converge({"alice": state})
    assert len(stage.notes.logged(events.ManifestLoaded)) == said + 1


async def test_an_env_file_that_changes_replaces_the_sandbox(stage: Stage, tmp_path: Path):
    env = tmp_path / "llm.env"
    env.write_text("MODEL=small\n", encoding="utf-8")
    await stage.converge({"alice": {"env_file": str(env)}, "bob": "running"})
    assert stage.host.box("oh-agent-server-alice").config.env["MODEL"] == "small"
    bob = stage.seen("bob").id
    env.write_text("MODEL=large\n", encoding="utf-8")
    await stage.converge({"alice": {"env_file": str(env)}, "bob": "running"})
    assert stage.host.box("oh-agent-server-alice").config.env["MODEL"] == "large"
    assert stage.seen("bob").id == bob


async def test_missing_env_file_keeps_the_container_running(stage: Stage, tmp_path: Path):
    env = tmp_path / "llm.env"
    wanted = {"alice": {"env_file": str(env)}}
    env.write_text("MODEL=small\n", encoding="utf-8")
    await stage.converge(wanted)
    before = stage.seen("alice").id
    env.unlink()
    await stage.edit(wanted)
    await stage.after(60)
    assert stage.seen("alice").id == before
    assert str(env) in stage.row("alice")["reason"]
    env.write_text("MODEL=small\n", encoding="utf-8")
    await stage.converge(wanted)
    assert stage.statuses() == {"alice": "RUNNING"}
    assert stage.seen("alice").id == before


async def test_replicas_are_added_and_removed(stage: Stage):
    await stage.converge({"pool": {"replicas": 3}})
    assert sorted(stage.phases()) == ["pool-1", "pool-2", "pool-3"]
    await stage.converge({"pool": {"replicas": 1}})
    assert sorted(stage.phases()) == ["pool-1"]


async def test_a_spec_that_changes_touches_only_its_own_sandboxes(stage: Stage):
    other = {"image": IMAGE, "env": {"A": "1"}}
    await stage.converge({"alice": "running", "bob": {"spec": "other"}}, other=other)
    before = {name: stage.seen(name).id for name in ("alice", "bob")}
    await stage.converge(
        {"alice": "running", "bob": {"spec": "other"}}, other={**other, "env": {"A": "2"}}
    )
    assert stage.seen("alice").id == before["alice"]
    assert stage.seen("bob").id != before["bob"]


async def test_change_and_ledger_entry_are_durable_together(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    await stage.converge({"alice": "running"})
    store, told = stage.manager.store, []

    async def read_slowly(_paths: set[Path]) -> set[str]:
        await store.flush()
        told.extend(entry.event for entry in await store.events("alice"))
        return set()

    monkeypatch.setattr(stage.manager.manifest_sync._env_files, "refresh", read_slowly)
    await stage.edit({"alice": "paused"})
    assert "record.changed" in told


async def test_unreadable_env_file_blocks_no_other_record(stage: Stage, tmp_path: Path):
    env = tmp_path / "llm.env"
    env.mkdir()
    await stage.edit_or_start({"alice": {"env_file": str(env)}, "bob": "running"})
    await stage.after(60)
    assert stage.phases() == {"bob": "running"}
    assert stage.statuses()["alice"] == "ERROR"
    assert "not a regular file" in stage.row("alice")["reason"]
    (line,) = stage.notes.logged(events.ManifestHeld)
    assert line["location"].startswith(f"{stage.file}:")
    env.rmdir()
    env.write_text("MODEL=small\n", encoding="utf-8")
    reading = await stage.manager.manifest_sync.read()
    assert reading.diagnostics == ()
    await stage.quiet()
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}


def causes(stage: Stage, event: type[events.Event], name: str) -> list[str]:
    return [line["cause"] for line in stage.notes.logged(event, sandbox=name)]


async def test_record_lines_name_their_origin(stage: Stage):
    await stage.converge({"alice": "running"})
    assert causes(stage, events.RecordAdded, "alice") == [f"{stage.file} was read at startup"]
    await stage.edit({"alice": "stopped"})
    assert causes(stage, events.RecordChanged, "alice") == [f"{stage.file} was edited"]
    await stage.edit({"alice": "stopped", "bob": "running"})
    assert causes(stage, events.RecordAdded, "bob") == [f"{stage.file} was edited"]


async def test_confirmed_deletion_is_logged_as_such(stage: Stage):
    await stage.converge({f"job-{number}": "stopped" for number in range(6)})
    await stage.edit({"job-0": "stopped"})
    assert not stage.notes.logged(events.RecordDeleted)
    await stage.manager.manifest_sync.read(allow_mass_delete=True)
    assert causes(stage, events.RecordDeleted, "job-1") == ["the deletions were confirmed"]
    (line,) = stage.notes.logged(events.ManifestBrakeReleased)
    assert (line["deletions"], line["why"]) == (5, "confirmed")


async def test_the_file_in_force_is_logged_at_each_start(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.restart()
    assert len(stage.notes.logged(events.ManifestLoaded, path=str(stage.file))) == 2


async def test_a_changed_env_file_is_the_cause(stage: Stage):
    env_file = stage.file.parent / "llm.env"
    env_file.write_text("A=1\n")
    await stage.converge({"alice": {"env_file": str(env_file)}})
    env_file.write_text("A=2\n")
    await stage.manager.manifest_sync.read()
    await stage.quiet()
    cause = f"its env_file {env_file} changed"
    assert causes(stage, events.RecordChanged, "alice") == [cause]
    made = [e.cause for e in await stage.store.events("alice") if e.event == "sandbox.created"]
    assert made == ["the container does not exist", cause]
    await stage.converge({"alice": {"env_file": str(env_file), "env": {"B": "1"}}})
    made = [e.cause for e in await stage.store.events("alice") if e.event == "sandbox.created"]
    assert made[-1] == "the spec changed"
