"""Changes that others make to a container or workspace, and how long they last."""

import asyncio

import pytest

from reconciler.core import naming
from reconciler.core.action import Verb
from reconciler.core.errors import Refused
from reconciler.telemetry import events
from tests.simulation.stage import PLAIN, PREFIX, Stage

GRACE = 30.0
ALICE = f"{PREFIX}alice"
VOLUME = naming.volume_name(PREFIX, "alice")
RED = {**PLAIN, "env": {"COLOUR": "red"}}


# --- pauses


async def test_external_pause_is_undone_after_a_grace(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.host.docker_pause(ALICE)
    await stage.after(GRACE - 1)
    assert stage.phases() == {"alice": "paused"}
    row = stage.row("alice")
    assert (row["status"], row["reason"]) == ("PAUSED", "others paused it")
    assert "foreign_pause_grace" in row["next"]
    (begun,) = stage.notes.logged(events.SandboxPausedByOthers, sandbox="alice")
    assert begun["resume_in"] == GRACE
    await stage.after(2)
    assert stage.phases() == {"alice": "running"}
    assert len(stage.notes.logged(events.SandboxResumed, sandbox="alice")) == 1
    assert stage.row("alice")["reason"] == ""


async def test_external_resume_is_accepted(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.host.docker_pause(ALICE)
    await stage.after(5)
    stage.host.docker_unpause(ALICE)
    await stage.after(60)
    assert stage.engine.count("unpause") == 0
    (resumed,) = stage.notes.logged(events.SandboxResumed, sandbox="alice")
    assert "someone else" in resumed["cause"]
    stage.host.docker_pause(ALICE)
    await stage.after(GRACE - 1)
    assert stage.phases() == {"alice": "paused"}


async def test_the_grace_counts_over_a_restart_of_the_daemon(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.host.docker_pause(ALICE)
    await stage.after(20)
    await stage.restart()
    await stage.after(5)
    assert stage.phases() == {"alice": "paused"}
    await stage.after(10)
    assert stage.phases() == {"alice": "running"}
    assert len(stage.notes.logged(events.SandboxPausedByOthers)) == 1


async def test_own_pause_is_undone_at_once(stage: Stage):
    await stage.converge({"alice": "paused"})
    await stage.edit({"alice": "running"})
    await stage.after(1)
    assert stage.phases() == {"alice": "running"}
    await stage.converge({"alice": "paused"})
    await stage.edit({"alice": {"spec": "red", "state": "paused"}}, red=RED)
    await stage.after(2)
    assert stage.phases() == {"alice": "paused"}
    assert not stage.notes.logged(events.SandboxPausedByOthers)


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 0.6, 0.9, 1.1])
async def test_own_pause_is_known_after_a_kill(stage: Stage, moment: float):
    await stage.converge({"alice": "running"})
    stage.engine.latency["pause"] = stage.engine.answering["pause"] = 0.5
    await stage.edit({"alice": "paused"})
    await stage.after(moment)
    await stage.crash()
    stage.write({"alice": "running"})
    await stage.start()
    await stage.after(3)
    assert stage.phases() == {"alice": "running"}
    assert not stage.notes.logged(events.SandboxPausedByOthers)


@pytest.mark.parametrize("edit", [{"alice": "stopped"}, {"alice": {"spec": "red"}}])
async def test_an_edit_waits_for_a_commit_too(stage: Stage, edit: dict):
    await stage.converge({"alice": "running"})
    stage.host.docker_pause(ALICE)
    await stage.after(1)
    await stage.edit(edit, red=RED)
    await stage.after(GRACE - 5)
    assert stage.seen("alice").phase == "paused"
    await stage.after(10)
    assert stage.seen("alice").phase == ("exited" if edit == {"alice": "stopped"} else "running")


# --- restarts


async def test_a_restart_by_others_is_logged_and_counted(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.host.docker_restart(ALICE)
    await stage.after(1)
    (told,) = stage.notes.logged(events.SandboxRestartedByOthers, sandbox="alice")
    assert (told["times"], stage.row("alice")["restarts"]) == (1, 1)
    await stage.after(120)
    assert len(stage.notes.logged(events.SandboxRestartedByOthers)) == 1
    assert stage.engine.count("start") == 1


async def test_restarts_by_the_engine_are_counted_without_a_daemon(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.stop()
    stage.host.engine_restarts(ALICE, 7)
    await stage.start()
    await stage.after(1)
    assert stage.row("alice")["restarts"] == 7
    assert stage.notes.logged(events.SandboxRestartedByOthers, times=7)


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 0.6, 0.9, 1.1])
async def test_own_starts_are_not_counted_as_external(stage: Stage, moment: float):
    await stage.converge({"alice": "running"})
    await stage.converge({"alice": "stopped"})
    stage.engine.latency["start"] = stage.engine.answering["start"] = 0.5
    await stage.edit({"alice": "running"})
    await stage.after(moment)
    await stage.crash()
    await stage.start()
    await stage.after(5)
    stage.host.kill(ALICE)
    await stage.after(5)
    assert stage.phases() == {"alice": "running"}
    assert not stage.notes.logged(events.SandboxRestartedByOthers)
    assert stage.row("alice")["restarts"] == 1


# --- workspaces


async def prune(stage: Stage) -> None:
    """Run ``docker system prune --volumes`` faster than the daemon reacts."""
    await stage.stop()
    for box in list(stage.host.boxes.values()):
        if not box.seen.live:
            stage.host.drop(box)
    stage.host.remove_volume(VOLUME)
    await stage.start()
    await stage.quiet()


async def test_pruned_workspace_is_an_error_until_an_edit(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.converge({"alice": "stopped"})
    await prune(stage)
    (lost,) = stage.notes.logged(events.VolumeLost, sandbox="alice")
    assert lost["volume"] == VOLUME
    assert events.VolumeLost.level == "error"
    row = stage.row("alice")
    assert row["status"] == "STOPPED"
    assert f"workspace {VOLUME} was removed" in row["reason"]
    await stage.converge({"alice": "running"})
    await stage.restart()
    await stage.quiet()
    row = stage.row("alice")
    assert row["status"] == "RUNNING"
    assert f"workspace {VOLUME} was removed" in row["reason"]
    assert VOLUME in stage.host.volumes
    await stage.converge({"alice": {"spec": "red"}}, red=RED)
    assert stage.row("alice")["reason"] == ""
    assert len(stage.notes.logged(events.VolumeLost)) == 1
    ledger = [entry.event for entry in await stage.store.events("alice")]
    assert ledger.count("volume.lost") == 1


async def test_adopt_accepts_the_new_workspace_after_a_loss(stage: Stage):
    await stage.converge({"alice": "stopped", "bob": "running"})
    await prune(stage)
    await stage.converge({"alice": "running", "bob": "running"})
    assert "`reconciler adopt alice` accepts it" in stage.row("alice")["reason"]
    ours = stage.seen("alice").id
    answer = await stage.operations.adopt("alice", None)
    assert answer == {"sandbox": "alice", "adopted": [VOLUME]}
    await stage.restart()
    await stage.quiet()
    assert stage.seen("alice").id == ours
    assert stage.row("alice")["reason"] == ""
    # It is a workspace that we made, and goes with its record.
    await stage.converge({"bob": "running"})
    await stage.days(30)
    assert VOLUME not in stage.host.volumes


async def test_volume_removed_while_watched_is_lost_once(stage: Stage):
    await stage.converge({"alice": "stopped", "bob": "running"})
    stage.engine.hang("create")
    stage.host.remove(ALICE)
    stage.host.remove_volume(VOLUME)
    await stage.after(1)
    stage.engine.release("create")
    await stage.after(5)
    assert len(stage.notes.logged(events.VolumeLost)) == 1
    assert VOLUME in stage.host.volumes


async def test_unwanted_or_never_created_volume_is_not_lost(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    bare = {**PLAIN, "workspace": None}
    await stage.converge({"alice": {"spec": "bare"}, "bob": "running"}, bare=bare)
    stage.host.remove_volume(VOLUME)
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    stage.host.remove_volume(VOLUME)
    await stage.converge({"alice": "running", "bob": "running"})
    assert not stage.notes.logged(events.VolumeLost)


async def test_a_sandbox_that_others_disconnected_is_connected_again(stage: Stage):
    await stage.converge({"alice": "running", "bob": {"network": {"mode": "none"}, "ports": []}})
    before = stage.seen("alice")
    stage.host.disconnect(ALICE)
    await stage.restart()
    await stage.quiet()
    assert stage.seen("alice") == before
    (line,) = stage.notes.logged(events.SandboxDrifted, sandbox="alice")
    assert (line["field"], line["old"], line["new"]) == ("network", "bridge", "")
    assert stage.engine.count("update") == 1
    assert stage.row("alice")["restarts"] == 0


async def test_memory_is_durable_before_each_action(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.engine.hang("pause")
    await stage.edit({"alice": "paused"})
    async with asyncio.timeout(5):
        while stage.engine.calls[-1][0] != str(Verb.PAUSE):
            await stage.after(0.01)
    await stage.crash()
    stage.engine.release("pause")
    stage.host.docker_pause(ALICE)
    stage.write({"alice": "running"})
    await stage.start()
    await stage.after(2)
    assert stage.phases() == {"alice": "running"}


# --- limits

LIMITED = {**PLAIN, "resources": {"memory": 64 << 20}}


@pytest.mark.parametrize("state", ["running", "paused", "stopped"])
async def test_external_limit_changes_are_set_back(stage: Stage, state: str):
    await stage.converge({"alice": state}, plain=LIMITED)
    made, former = stage.seen("alice").limits, stage.seen("alice").id
    stage.host.docker_update(ALICE, restart_policy="always", memory=32 << 20, pids=50)
    await stage.after(1)
    assert (stage.seen("alice").limits, stage.seen("alice").id) == (made, former)
    told = stage.notes.logged(events.SandboxDrifted, sandbox="alice")
    assert {(it["field"], it["old"], it["new"]) for it in told} == {
        ("restart_policy", "no", "always"),
        ("memory", 64 << 20, 32 << 20),
        ("pids", 0, 50),
    }
    assert len(stage.notes.logged(events.SandboxUpdated)) == 1
    await stage.after(600)
    assert stage.engine.count("update") == 1
    assert stage.engine.count("create") == 1


async def test_limits_changed_again_during_an_update_are_set_back_again(stage: Stage):
    await stage.converge({"alice": "running"}, plain=LIMITED)
    made = stage.seen("alice").limits
    stage.engine.answering["update"] = 0.5
    stage.host.docker_update(ALICE, memory=32 << 20)
    await stage.after(0.3)
    assert stage.seen("alice").limits == made
    # The engine has carried out the update, and the daemon waits for its answer.
    stage.host.docker_update(ALICE, restart_policy="always", memory=128 << 20)
    await stage.after(5)
    assert stage.seen("alice").limits == made
    assert stage.engine.count("update") == 2


async def test_limits_changed_without_a_daemon_are_set_back(stage: Stage):
    await stage.converge({"alice": "running"}, plain=LIMITED)
    made = stage.seen("alice").limits
    await stage.stop()
    stage.host.docker_update(ALICE, memory_swap=-1, cpuset="0")
    await stage.start()
    await stage.after(1)
    assert stage.seen("alice").limits == made


async def test_refused_limits_are_an_error_of_a_running_sandbox(stage: Stage):
    await stage.converge({"alice": "running"}, plain=LIMITED)
    former = stage.seen("alice").id
    stage.engine.fail_next("update", Refused("device or resource busy"), 10_000)
    stage.host.docker_update(ALICE, memory=128 << 20)
    await stage.after(600)
    assert stage.engine.count("update") <= 20
    row = stage.row("alice")
    assert (row["status"], row["reason"]) == ("RUNNING", "device or resource busy")
    assert stage.seen("alice").id == former
    assert len(stage.notes.logged(events.SandboxDrifted)) == 1
    stage.host.kill(ALICE)
    await stage.after(10)
    assert stage.phases() == {"alice": "running"}
    stage.engine._faults.clear()
    await stage.after(65)
    assert stage.seen("alice").limits.memory == 64 << 20


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 0.6, 0.9, 1.1])
async def test_a_kill_at_an_update_leaves_the_limits_as_wanted(stage: Stage, moment: float):
    await stage.converge({"alice": "running"}, plain=LIMITED)
    made = stage.seen("alice").limits
    stage.engine.latency["update"] = stage.engine.answering["update"] = 0.5
    stage.host.docker_update(ALICE, memory=128 << 20)
    await stage.after(moment)
    await stage.crash()
    await stage.start()
    await stage.after(5)
    assert stage.seen("alice").limits == made


async def test_update_of_limits_is_no_drift(stage: Stage):
    await stage.converge({"alice": "running"}, plain=LIMITED)
    more = {**PLAIN, "resources": {"memory": 128 << 20, "pids": 5, "cpus": 1.5}}
    await stage.converge({"alice": "running"}, plain=more)
    await stage.restart()
    await stage.after(120)
    assert stage.engine.count("update") == 0
    assert not stage.notes.logged(events.SandboxDrifted)
