"""Scenarios of users and hosts, from the desired file to the containers."""

from dataclasses import replace

import pytest

from reconciler.core import naming
from reconciler.core.errors import EngineError, EngineTimeout, Refused, StoreError
from reconciler.core.observed import Phase
from reconciler.telemetry import events
from tests.fakes.host import labels
from tests.simulation.stage import PREFIX, Stage

ALICE = f"{PREFIX}alice"
VOLUME = f"openhands-workspace-{ALICE}"
CRASHING = {"command": ["sh", "-c", "echo so long; exit 3"]}


@pytest.mark.parametrize("former", ["running", "paused", "stopped"])
@pytest.mark.parametrize(
    ("state", "phase"), [("running", "running"), ("paused", "paused"), ("stopped", "exited")]
)
async def test_every_state_is_reached_from_every_other(
    stage: Stage, former: str, state: str, phase: str
):
    await stage.converge({"alice": former})
    before = stage.seen("alice")
    await stage.converge({"alice": state})
    after = stage.seen("alice")
    never_started = former == state == "stopped"
    assert after.phase == ("created" if never_started else phase)
    assert (after.id, after.session_key) == (before.id, before.session_key)
    assert stage.statuses() == {"alice": state.upper()}
    assert not stage.notes.logged(events.SandboxDied)


@pytest.mark.parametrize("state", ["running", "paused", "stopped"])
async def test_removed_record_keeps_its_workspace(stage: Stage, state: str):
    await stage.converge({"alice": state, "bob": "running"})
    await stage.converge({"bob": "running"})
    assert stage.phases() == {"bob": "running"}
    assert VOLUME in stage.host.volumes
    assert "alice" not in stage.store.deleted


async def test_returned_record_gets_its_workspace_and_key(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    key, made = stage.seen("alice").session_key, stage.host.volumes[VOLUME]
    await stage.converge({"bob": "running"})
    await stage.days(6)
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.days(30)
    assert stage.seen("alice").session_key == key
    assert stage.host.volumes[VOLUME] is made


async def test_workspace_is_removed_after_retention_over_restarts(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    for _ in range(6):
        await stage.days(1)
        await stage.restart()
    assert VOLUME in stage.host.volumes
    await stage.days(1)
    assert VOLUME not in stage.host.volumes
    assert list(stage.host.volumes) == [f"openhands-workspace-{PREFIX}bob"]


async def test_crash_loop_backs_off_and_logs_two_lines_a_restart(stage: Stage):
    await stage.converge({"alice": CRASHING, "bob": "running"})
    await stage.after(3600)
    starts = stage.engine.calls.count(("start", stage.seen("alice").id))
    assert 55 <= starts <= 80
    about = [line for _, line in stage.notes.lines if line.get("sandbox") == "alice"]
    loops = [line["in_a_row"] for line in stage.notes.logged(events.SandboxRestartLoop)]
    assert loops == [5, 10, 20, 40]
    assert len(about) <= 2 * starts + len(loops) + 5
    death = stage.notes.logged(events.SandboxDied)[-1]
    assert (death["exit_code"], death["last_lines"][-1]) == (3, "so long")
    assert stage.row("alice")["status"] == "ERROR"
    assert stage.row("alice")["restarts"] == starts - 1
    assert stage.statuses()["bob"] == "RUNNING"


async def test_the_backoff_outlives_the_daemon(stage: Stage):
    await stage.converge({"alice": CRASHING})
    await stage.after(300)
    starts = stage.engine.count("start")
    for _ in range(5):
        await stage.restart()
        await stage.after(1)
    assert stage.engine.count("start") <= starts + 1


async def test_unavailable_engine_changes_nothing(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    before = {name: stage.seen(name).id for name in ("alice", "bob")}
    stage.host.down = True
    stage.host.end_streams()
    await stage.edit({"alice": "paused", "bob": "running", "carol": "running"})
    changes = len(stage.engine.changes)
    await stage.after(3600)
    assert len(stage.engine.changes) == changes
    assert len(stage.notes.logged(events.EngineLost)) <= 61
    stage.host.down = False
    await stage.after(10)
    await stage.quiet()
    assert stage.phases() == {"alice": "paused", "bob": "running", "carol": "running"}
    assert {name: stage.seen(name).id for name in before} == before
    assert not stage.notes.logged(events.SandboxDied)


async def test_engine_restart_changes_nothing(stage: Stage):
    await stage.converge({"alice": "running", "bob": "paused", "carol": "stopped"})
    stage.host.restart_engine()
    await stage.after(30)
    assert stage.phases() == {"alice": "running", "bob": "paused", "carol": "created"}


@pytest.mark.parametrize("verb", ["create_volume", "create", "prepare", "start"])
@pytest.mark.parametrize("after", [True, False], ids=["done", "not done"])
async def test_unknown_outcome_creates_no_duplicate(stage: Stage, verb: str, after: bool):  # noqa: FBT001
    stage.engine.fail_next(verb, EngineTimeout("no answer"), after=after)
    await stage.converge({"alice": "running"})
    await stage.after(30)
    assert stage.phases() == {"alice": "running"}
    assert list(stage.host.volumes) == [VOLUME]
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_a_sandbox_whose_port_was_taken_gets_another(stage: Stage):
    await stage.converge({"alice": "running"})
    (port,) = stage.seen("alice").ports.values()
    stage.host.take_port(port)
    stage.host.kill(ALICE)
    await stage.after(30)
    assert stage.statuses() == {"alice": "RUNNING"}
    (other,) = stage.seen("alice").ports.values()
    assert other != port
    assert stage.row("alice")["exposed_urls"][0]["url"] == f"http://localhost:{other}"


async def test_missing_image_is_pulled_before_the_create(stage: Stage):
    stage.host.registry.add("far:1")
    stage.engine.latency["pull"] = 100.0
    await stage.edit_or_start({"alice": {"image": "far:1"}, "bob": "running"})
    await stage.after(5)
    assert stage.row("alice")["reason"] == "pulling far:1"
    assert stage.statuses()["bob"] == "RUNNING"
    await stage.after(100)
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}


async def test_failed_pull_keeps_the_old_container_running(stage: Stage):
    await stage.converge({"alice": "running"})
    before = stage.seen("alice").id
    await stage.edit({"alice": {"image": "nowhere:1"}})
    await stage.after(30)
    row = stage.row("alice")
    assert (row["status"], row["container_id"]) == ("RUNNING", before)
    assert "nowhere:1" in row["reason"]
    assert stage.phases() == {"alice": "running"}
    stage.host.registry.add("nowhere:1")
    await stage.after(90)
    assert stage.statuses() == {"alice": "RUNNING"}
    assert stage.seen("alice").id != before


async def test_unstartable_replacement_is_rolled_back(stage: Stage):
    await stage.converge({"alice": "running"})
    before = stage.seen("alice")
    await stage.edit({"alice": {"command": ["no-such-program"]}})
    await stage.after(30)
    assert stage.phases() == {"alice": "running"}
    assert stage.seen("alice").id == before.id
    assert "no-such-program" in stage.row("alice")["reason"]
    assert len(stage.notes.logged(events.SandboxRolledBack)) == 1


async def test_replacement_keeps_key_ports_and_workspace(stage: Stage):
    await stage.converge({"alice": "running"})
    before, made = stage.seen("alice"), stage.host.volumes[VOLUME]
    await stage.converge({"alice": {"env": {"A": "1"}}})
    after = stage.seen("alice")
    assert after.id != before.id
    assert (after.session_key, after.ports) == (before.session_key, before.ports)
    assert stage.host.volumes[VOLUME] is made
    assert len(stage.notes.logged(events.SandboxReplaced)) == 1


@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.RUNNING, Phase.PAUSED, Phase.EXITED])
async def test_orphans_are_removed_after_grace_foreign_ones_never(stage: Stage, phase: Phase):
    await stage.converge({"alice": "running"})
    stage.add_orphan("ours", phase)
    stage.host.add_container(f"{PREFIX}theirs", {}, phase=phase)
    stage.host.add_container("others", labels("other", "alice"), phase=phase)
    await stage.after(290)
    assert "ours" in stage.phases()
    await stage.after(120)
    assert stage.phases() == {"alice": "running", "theirs": phase, "others": phase}


async def test_foreign_container_with_the_name_is_one_error(stage: Stage):
    stage.host.add_container(ALICE, {})
    await stage.edit_or_start({"alice": "running", "bob": "running"})
    await stage.after(30)
    assert stage.statuses() == {"alice": "ERROR", "bob": "RUNNING"}
    stage.host.remove(ALICE)
    await stage.after(90)
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}


async def test_full_state_disk_allows_deletes_and_recovers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    await stage.converge({"alice": "running", "bob": "running"})
    write = stage.store._database.write

    def refuse(*_: object) -> None:
        raise StoreError("no space left on device")

    monkeypatch.setattr(stage.store._database, "write", refuse)
    await stage.edit({"bob": "running", "carol": "running"})
    await stage.after(60)
    assert stage.phases() == {"bob": "running"}
    assert "no space left" in stage.row("carol")["reason"]
    assert len(stage.notes.logged(events.StoreWriteFailed)) == 1
    monkeypatch.setattr(stage.store._database, "write", write)
    await stage.after(90)
    assert stage.phases() == {"bob": "running", "carol": "running"}
    assert len(stage.notes.logged(events.StoreRecovered)) == 1


@pytest.mark.parametrize("hours", [-10_000, -1, 1, 10_000])
async def test_a_clock_that_jumps_restarts_and_deletes_nothing(stage: Stage, hours: float):
    probe = {"health": {"kind": "exec", "command": ["true"]}}
    await stage.converge({"alice": probe, "bob": "paused", "carol": "stopped"})
    before = {name: stage.seen(name) for name in ("alice", "bob", "carol")}
    stage.wall.jump(hours * 3600)
    stage.engine_clock.jump(hours * 3600)
    await stage.after(600)
    assert {name: stage.seen(name) for name in before} == before
    stage.host.kill(ALICE)
    await stage.after(10)
    assert stage.statuses()["alice"] == "RUNNING"


async def test_an_unhealthy_sandbox_is_restarted_with_backoff(stage: Stage):
    health = {"kind": "exec", "command": ["false"], "startup_grace": "5s", "interval": "1s"}
    await stage.edit_or_start({"alice": {"health": health}})
    await stage.after(3)
    assert stage.statuses() == {"alice": "STARTING"}
    await stage.after(600)
    assert 5 <= stage.row("alice")["restarts"] <= 20
    assert "false" in stage.notes.logged(events.SandboxUnhealthy)[-1]["cause"]
    assert not stage.notes.logged(events.SandboxDied)


async def test_crash_first_noticed_by_the_probe_is_a_crash(stage: Stage):
    health = {"kind": "exec", "command": ["true"], "startup_grace": "1s", "interval": "1s"}
    await stage.converge({"alice": {"health": health}})
    await stage.after(5)
    stage.host.subscribers.clear()  # the event is lost
    stage.host.kill(ALICE, 3)
    await stage.after(20)
    (died,) = stage.notes.logged(events.SandboxDied)
    assert died["exit_code"] == 3
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_removed_volume_is_recreated_with_its_sandbox(stage: Stage):
    await stage.converge({"alice": "stopped"})
    stage.host.remove(ALICE)
    stage.host.remove_volume(VOLUME)
    await stage.after(5)
    assert stage.phases() == {"alice": "created"}
    assert stage.host.volumes[VOLUME].labels[naming.LABEL_SANDBOX] == "alice"


@pytest.mark.parametrize("verb", ["stop", "remove"])
async def test_deletion_succeeds_after_a_refusal(stage: Stage, verb: str):
    await stage.converge({"alice": "running", "bob": "running"})
    stage.engine.fail_next(verb, EngineTimeout("hangs"), times=2)
    stage.engine.fail_next(verb, EngineError("device busy"), times=2)
    await stage.edit({"bob": "running"})
    await stage.after(120)
    assert stage.phases() == {"bob": "running"}
    assert not stage.store.deleted


async def test_unremovable_dead_container_blocks_no_sandbox(stage: Stage):
    await stage.converge({"alice": "running"})
    wreck, key = stage.seen("alice"), stage.row("alice")["session_api_key"]
    stage.engine.fail_next("remove", EngineError("device or resource busy"), times=3)
    box = stage.host.box(wreck.id)
    stage.host.end(box, 137)
    box.seen = replace(box.seen, phase=Phase.DEAD)
    await stage.after(1)
    assert stage.seen("alice").phase is Phase.RUNNING
    assert stage.row("alice")["session_api_key"] == key
    # The rest is reported and retried.
    assert "busy" in stage.row("alice")["reason"]
    assert sorted(stage.phases().values()) == ["dead", "running"]
    await stage.after(120)
    assert stage.phases() == {"alice": "running"}
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_a_delete_ends_a_pull_that_hangs(stage: Stage):
    stage.host.registry.add("far:1")
    stage.engine.hang("pull")
    await stage.edit_or_start({"alice": {"image": "far:1"}, "bob": "running"})
    await stage.after(5)
    await stage.converge({"bob": "running"})
    assert not stage.store.deleted
    assert not stage.manager.puller._states


async def test_newest_edit_wins_during_a_create(stage: Stage):
    stage.engine.latency["create"] = 5.0
    await stage.edit_or_start({"alice": {"env": {"EDIT": "1"}}})
    for edit in "234":
        await stage.after(1)
        await stage.edit({"alice": {"env": {"EDIT": edit}}})
    await stage.after(60)
    await stage.quiet()
    assert stage.phases() == {"alice": "running"}
    assert stage.host.box(ALICE).config.env["EDIT"] == "4"


async def test_failing_create_and_its_recovery_are_logged_once(
    stage: Stage,
):
    stage.engine.fail_next("create", Refused("bad mount"), times=6)
    await stage.edit_or_start({"alice": "running"})
    await stage.after(40)
    assert len(stage.notes.logged(events.ActionFailed)) == 1
    assert len(stage.notes.logged(events.SandboxError)) == 1
    await stage.after(120)
    assert len(stage.notes.logged(events.SandboxRecovered)) == 1


async def test_session_keys_are_never_logged(stage: Stage):
    await stage.converge({"alice": "running"})
    key = stage.seen("alice").session_key
    stage.host.box(ALICE).log.append(f"my key is {key}")
    stage.host.kill(ALICE)
    await stage.after(10)
    (death,) = stage.notes.logged(events.SandboxDied)
    assert death["last_lines"] == ["my key is ***"]
    assert key not in repr(stage.notes.lines)
    assert key not in repr(await stage.store.events())


async def test_an_edit_is_followed_through_the_watched_file(stage: Stage):
    stage.write({"alice": "running"})
    await stage.start(absent=())
    await stage.quiet()
    stage.write({"alice": "paused"})
    await stage.after(11)
    assert stage.statuses() == {"alice": "PAUSED"}


async def test_many_deletions_share_their_lists(stage: Stage):
    names = [f"job-{number}" for number in range(60)]
    await stage.converge({"stays": "stopped", **dict.fromkeys(names, "stopped")})
    lists = stage.engine.count("list")
    stage.write({"stays": "stopped"})
    await stage.manager.manifest_sync.read(allow_mass_delete=True)
    await stage.after(10)
    assert stage.statuses() == {"stays": "STOPPED"}
    assert not stage.store.deleted
    assert stage.engine.count("list") - lists <= 10


async def test_deletion_contradicted_by_a_list_continues(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    gone = stage.engine.remove

    async def pretend(container_id: str) -> None:
        stage.engine.remove = gone

    async def vanished(_container_id: str) -> None:
        stage.engine.inspect = true

    true = stage.engine.inspect
    stage.engine.remove = pretend
    stage.engine.inspect = vanished
    await stage.converge({"bob": "running"})
    await stage.after(30)
    assert stage.phases() == {"bob": "running"}
    assert not stage.store.deleted


async def test_a_container_that_somebody_removes_is_reported(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.host.remove(ALICE)
    await stage.after(10)
    assert stage.phases() == {"alice": "running"}
    (line,) = stage.notes.logged(events.SandboxRemoved, sandbox="alice")
    assert line["cause"] == "someone else removed it"
    await stage.converge({"alice": {"env": {"A": "2"}}})
    await stage.converge({"alice": "stopped"})
    assert len(stage.notes.logged(events.SandboxRemoved)) == 1
    assert not stage.manager.controller._removed
