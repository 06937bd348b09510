"""What users and hosts do, and what becomes of it: the whole loop through real files."""

from dataclasses import replace

import pytest

from reconciler.core import naming
from reconciler.core.errors import EngineError, EngineTimeout, Refused, StoreError
from reconciler.core.model import Phase
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
    assert not stage.notes.said(events.SandboxDied)


@pytest.mark.parametrize("state", ["running", "paused", "stopped"])
async def test_what_is_taken_out_is_deleted_but_its_workspace_stays(stage: Stage, state: str):
    await stage.converge({"alice": state, "bob": "running"})
    await stage.converge({"bob": "running"})
    assert stage.phases() == {"bob": "running"}
    assert VOLUME in stage.host.volumes
    assert "alice" not in stage.store.deleted


async def test_a_record_that_comes_back_finds_its_workspace_and_its_key(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    key, made = stage.seen("alice").session_key, stage.host.volumes[VOLUME]
    await stage.converge({"bob": "running"})
    await stage.days(6)
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.days(30)
    assert stage.seen("alice").session_key == key
    assert stage.host.volumes[VOLUME] is made


async def test_the_workspace_goes_after_seven_days_whatever_restarts_lie_between(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    for _ in range(6):
        await stage.days(1)
        await stage.restart()
    assert VOLUME in stage.host.volumes
    await stage.days(1)
    assert VOLUME not in stage.host.volumes
    assert list(stage.host.volumes) == [f"openhands-workspace-{PREFIX}bob"]


async def test_a_crash_loop_is_backed_off_and_costs_two_lines_a_restart(stage: Stage):
    await stage.converge({"alice": CRASHING, "bob": "running"})
    await stage.after(3600)
    starts = stage.engine.calls.count(("start", stage.seen("alice").id))
    assert 55 <= starts <= 80
    about = [line for _, line in stage.notes.lines if line.get("sandbox") == "alice"]
    loops = [line["in_a_row"] for line in stage.notes.said(events.SandboxRestartLoop)]
    assert loops == [5, 10, 20, 40]
    assert len(about) <= 2 * starts + len(loops) + 5
    death = stage.notes.said(events.SandboxDied)[-1]
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


async def test_an_engine_that_is_away_is_waited_for_and_nothing_is_concluded(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    before = {name: stage.seen(name).id for name in ("alice", "bob")}
    stage.host.down = True
    stage.host.end_streams()
    await stage.edit({"alice": "paused", "bob": "running", "carol": "running"})
    changes = len(stage.engine.changes)
    await stage.after(3600)
    assert len(stage.engine.changes) == changes
    assert len(stage.notes.said(events.EngineLost)) <= 61
    stage.host.down = False
    await stage.after(10)
    await stage.quiet()
    assert stage.phases() == {"alice": "paused", "bob": "running", "carol": "running"}
    assert {name: stage.seen(name).id for name in before} == before
    assert not stage.notes.said(events.SandboxDied)


async def test_after_an_engines_restart_everything_is_as_it_was(stage: Stage):
    await stage.converge({"alice": "running", "bob": "paused", "carol": "stopped"})
    stage.host.restart_engine()
    await stage.after(30)
    assert stage.phases() == {"alice": "running", "bob": "paused", "carol": "created"}


@pytest.mark.parametrize("verb", ["create_volume", "create", "prepare", "start"])
@pytest.mark.parametrize("after", [True, False], ids=["done", "not done"])
async def test_a_call_of_unknown_outcome_doubles_nothing(stage: Stage, verb: str, after: bool):  # noqa: FBT001
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


async def test_an_image_that_is_not_there_is_pulled_then_the_sandbox_made(stage: Stage):
    stage.host.registry.add("far:1")
    stage.engine.latency["pull"] = 100.0
    await stage.edit_or_start({"alice": {"image": "far:1"}, "bob": "running"})
    await stage.after(5)
    assert stage.row("alice")["reason"] == "pulling far:1"
    assert stage.statuses()["bob"] == "RUNNING"
    await stage.after(100)
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}


async def test_a_failed_pull_is_a_reason_and_what_ran_keeps_running(stage: Stage):
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


async def test_a_replacement_that_cannot_be_started_is_taken_back(stage: Stage):
    await stage.converge({"alice": "running"})
    before = stage.seen("alice")
    await stage.edit({"alice": {"command": ["no-such-program"]}})
    await stage.after(30)
    assert stage.phases() == {"alice": "running"}
    assert stage.seen("alice").id == before.id
    assert "no-such-program" in stage.row("alice")["reason"]
    assert len(stage.notes.said(events.SandboxRolledBack)) == 1


async def test_a_replacement_keeps_the_key_the_ports_and_the_workspace(stage: Stage):
    await stage.converge({"alice": "running"})
    before, made = stage.seen("alice"), stage.host.volumes[VOLUME]
    await stage.converge({"alice": {"env": {"A": "1"}}})
    after = stage.seen("alice")
    assert after.id != before.id
    assert (after.session_key, after.ports) == (before.session_key, before.ports)
    assert stage.host.volumes[VOLUME] is made
    assert len(stage.notes.said(events.SandboxReplaced)) == 1


@pytest.mark.parametrize("phase", [Phase.CREATED, Phase.RUNNING, Phase.PAUSED, Phase.EXITED])
async def test_garbage_goes_after_its_grace_and_nothing_foreign_ever(stage: Stage, phase: Phase):
    await stage.converge({"alice": "running"})
    stage.add_orphan("ours", phase)
    stage.host.add_container(f"{PREFIX}theirs", {}, phase=phase)
    stage.host.add_container("others", labels("other", "alice"), phase=phase)
    await stage.after(290)
    assert "ours" in stage.phases()
    await stage.after(120)
    assert stage.phases() == {"alice": "running", "theirs": phase, "others": phase}


async def test_a_foreign_container_in_the_way_is_an_error_on_that_sandbox_alone(stage: Stage):
    stage.host.add_container(ALICE, {})
    await stage.edit_or_start({"alice": "running", "bob": "running"})
    await stage.after(30)
    assert stage.statuses() == {"alice": "ERROR", "bob": "RUNNING"}
    stage.host.remove(ALICE)
    await stage.after(90)
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}


async def test_with_a_full_disk_nothing_is_made_but_deletes_work_and_it_recovers(
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
    assert len(stage.notes.said(events.StoreWriteFailed)) == 1
    monkeypatch.setattr(stage.store._database, "write", write)
    await stage.after(90)
    assert stage.phases() == {"bob": "running", "carol": "running"}
    assert len(stage.notes.said(events.StoreRecovered)) == 1


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
    assert "false" in stage.notes.said(events.SandboxUnhealthy)[-1]["cause"]
    assert not stage.notes.said(events.SandboxDied)


async def test_a_death_of_which_the_probe_knows_first_is_told_as_one(stage: Stage):
    health = {"kind": "exec", "command": ["true"], "startup_grace": "1s", "interval": "1s"}
    await stage.converge({"alice": {"health": health}})
    await stage.after(5)
    stage.host.subscribers.clear()  # the event is lost
    stage.host.kill(ALICE, 3)
    await stage.after(20)
    (died,) = stage.notes.said(events.SandboxDied)
    assert died["exit_code"] == 3
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_a_volume_that_was_removed_is_made_again_with_its_sandbox(stage: Stage):
    await stage.converge({"alice": "stopped"})
    stage.host.remove(ALICE)
    stage.host.remove_volume(VOLUME)
    await stage.after(5)
    assert stage.phases() == {"alice": "created"}
    assert stage.host.volumes[VOLUME].labels[naming.LABEL_SANDBOX] == "alice"


@pytest.mark.parametrize("verb", ["stop", "remove"])
async def test_a_delete_works_in_the_end_though_the_engine_refuses_it_first(
    stage: Stage, verb: str
):
    await stage.converge({"alice": "running", "bob": "running"})
    stage.engine.fail_next(verb, EngineTimeout("hangs"), times=2)
    stage.engine.fail_next(verb, EngineError("device busy"), times=2)
    await stage.edit({"bob": "running"})
    await stage.after(120)
    assert stage.phases() == {"bob": "running"}
    assert not stage.store.deleted


async def test_wreckage_that_cannot_be_removed_keeps_no_sandbox_down(stage: Stage):
    await stage.converge({"alice": "running"})
    wreck, key = stage.seen("alice"), stage.row("alice")["session_api_key"]
    stage.engine.fail_next("remove", EngineError("device or resource busy"), times=3)
    box = stage.host.box(wreck.id)
    stage.host.end(box, 137)
    box.seen = replace(box.seen, phase=Phase.DEAD)
    await stage.after(1)
    assert stage.seen("alice").phase is Phase.RUNNING
    assert stage.row("alice")["session_api_key"] == key
    # What is left to remove is told, and tried again.
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


async def test_the_newest_edit_wins_while_a_create_is_on_its_way(stage: Stage):
    stage.engine.latency["create"] = 5.0
    await stage.edit_or_start({"alice": {"env": {"EDIT": "1"}}})
    for edit in "234":
        await stage.after(1)
        await stage.edit({"alice": {"env": {"EDIT": edit}}})
    await stage.after(60)
    await stage.quiet()
    assert stage.phases() == {"alice": "running"}
    assert stage.host.box(ALICE).config.env["EDIT"] == "4"


async def test_one_that_cannot_be_made_is_complained_of_once_and_told_when_it_is_well(
    stage: Stage,
):
    stage.engine.fail_next("create", Refused("bad mount"), times=6)
    await stage.edit_or_start({"alice": "running"})
    await stage.after(40)
    assert len(stage.notes.said(events.ActionFailed)) == 1
    assert len(stage.notes.said(events.SandboxError)) == 1
    await stage.after(120)
    assert len(stage.notes.said(events.SandboxRecovered)) == 1


async def test_no_session_key_is_ever_said(stage: Stage):
    await stage.converge({"alice": "running"})
    key = stage.seen("alice").session_key
    stage.host.box(ALICE).log.append(f"my key is {key}")
    stage.host.kill(ALICE)
    await stage.after(10)
    (death,) = stage.notes.said(events.SandboxDied)
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


async def test_a_deletion_that_a_list_contradicts_goes_on(stage: Stage):
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
    (line,) = stage.notes.said(events.SandboxRemoved, sandbox="alice")
    assert line["cause"] == "it was removed, and not by this daemon"
    await stage.converge({"alice": {"env": {"A": "2"}}})
    await stage.converge({"alice": "stopped"})
    assert len(stage.notes.said(events.SandboxRemoved)) == 1
    assert not stage.manager._controller._removed
