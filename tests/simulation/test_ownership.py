"""Ownership of objects: ours, foreign ones, and those of a lost database."""

import asyncio
from pathlib import Path

import pytest

from reconciler.core import naming
from reconciler.core.errors import EngineError, EngineTimeout, NotFound, Refused
from reconciler.core.observed import Phase
from reconciler.engine.protocol import EngineEvent, EventKind
from reconciler.telemetry import events
from tests.fakes.host import IMAGE, labels
from tests.simulation.stage import PREFIX, Stage

NAME = f"{PREFIX}alice"
VOLUME = naming.volume_of(NAME)
SNAPSHOT = "me/snapshot:1"
EDIT = {"alice": {"env": {"COLOUR": "red"}}}


async def long(stage: Stage) -> None:
    """Wait for a relist and for every grace."""
    await stage.after(1000)


def ids(stage: Stage) -> dict[str, str]:
    return {box.seen.name: box.seen.id for box in stage.host.boxes.values()}


async def only_a_snapshot_is_left(stage: Stage, name: str) -> str:
    """Lose the database and the sandbox, and run its snapshot as `name`; return the id."""
    await stage.converge({"alice": "running"})
    stage.host.commit(NAME, SNAPSHOT)
    await stage.lose_database()
    stage.host.remove(NAME)
    return stage.host.run_image(name, SNAPSHOT)


# --- a snapshot that somebody runs


@pytest.mark.parametrize(
    "name", ["my-debug", f"{PREFIX}bob", naming.successor_name(PREFIX, "alice")]
)
async def test_a_container_from_a_snapshot_is_left_alone(stage: Stage, name: str):
    await stage.converge({"alice": "running"})
    stage.host.commit(NAME, SNAPSHOT)
    theirs = stage.host.run_image(name, SNAPSHOT)
    ours = stage.seen("alice").id
    await stage.after(1)
    await stage.restart()
    await long(stage)
    await stage.edit({"alice": "stopped"})
    await long(stage)
    assert ids(stage) == {NAME: ours, name: theirs}
    assert stage.host.box(theirs).seen.phase is Phase.RUNNING
    assert not stage.notes.logged(events.GarbageFound)


async def test_container_of_a_snapshot_does_not_replace_the_original(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.host.commit(NAME, SNAPSHOT)
    await stage.stop()
    stage.host.remove(NAME)
    theirs = stage.host.run_image("my-debug", SNAPSHOT)
    await stage.start()
    await long(stage)
    assert ids(stage).keys() == {NAME, "my-debug"}
    assert ids(stage)["my-debug"] == theirs
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_container_of_a_snapshot_is_no_orphan(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    stage.host.commit(NAME, SNAPSHOT)
    theirs = stage.host.run_image("my-debug", SNAPSHOT)
    await stage.converge({"bob": "running"})
    await long(stage)
    await stage.days(30)
    assert theirs in ids(stage).values()
    assert not [row for row in stage.queries.garbage() if row["kind"] == "container"]


async def test_snapshot_with_the_name_of_its_sandbox_is_an_error(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    stage.host.commit(NAME, SNAPSHOT)
    await stage.stop()
    stage.host.remove(NAME)
    theirs = stage.host.run_image(NAME, SNAPSHOT)
    await stage.start()
    await long(stage)
    assert ids(stage)[NAME] == theirs
    assert stage.statuses() == {"alice": "ERROR", "bob": "RUNNING"}
    assert NAME in stage.row("alice")["reason"]
    stage.host.remove(NAME)
    await long(stage)
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}


async def test_sandbox_of_a_snapshot_image_is_ours(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.host.commit(NAME, SNAPSHOT)
    await stage.converge({"alice": "running", "bob": {"image": SNAPSHOT}})
    await stage.lose_database()
    await stage.start()
    await stage.quiet()
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}


async def test_unreadable_image_of_a_lost_database_is_no_proof(stage: Stage):
    theirs = await only_a_snapshot_is_left(stage, NAME)
    stage.engine.fail_next("image_labels", EngineError("500"))
    await stage.start()
    await stage.edit({"alice": "stopped"})
    await long(stage)
    assert stage.host.box(theirs).seen.phase is Phase.RUNNING


@pytest.mark.parametrize("name", ["my-debug", NAME])
async def test_with_the_database_lost_a_snapshot_is_still_foreign(stage: Stage, name: str):
    theirs = await only_a_snapshot_is_left(stage, name)
    await stage.start()
    await long(stage)
    assert ids(stage)[name] == theirs
    assert stage.host.box(theirs).seen.phase is Phase.RUNNING


async def test_a_hand_made_container_takes_no_part(stage: Stage):
    await stage.converge({"alice": "running"})
    forged = labels("default", "bob", owner=stage.store.owner, nonce="guessed", spec_hash="1:x")
    theirs = stage.host.add_container(f"{PREFIX}bob", forged)
    await long(stage)
    assert ids(stage)[f"{PREFIX}bob"] == theirs
    assert not stage.notes.logged(events.GarbageFound)


async def test_renamed_container_gets_its_name_back(stage: Stage):
    await stage.converge({"alice": "running"})
    ours = stage.seen("alice").id
    stage.host.rename(NAME, "my-alice")
    await stage.after(5)
    assert ids(stage) == {NAME: ours}
    await stage.stop()
    stage.host.rename(NAME, "my-alice")
    await stage.start()
    await stage.after(5)
    assert ids(stage) == {NAME: ours}


# --- what is made while the daemon dies


async def test_create_with_a_lost_response_is_not_repeated(stage: Stage):
    stage.engine.fail_next("create", EngineTimeout("no answer"), after=True)
    await stage.converge({"alice": "running"})
    assert ids(stage).keys() == {NAME}
    assert stage.engine.count("create") == 1
    assert stage.store.claim("alice").pending.keys() <= {naming.stand_in_name(PREFIX, "alice")}


async def test_duplicate_create_leaves_nothing_behind(stage: Stage):
    """A proxy may hold a request back until long after the daemon has given it up."""
    await stage.converge({"alice": "running"})
    successor = naming.successor_name(PREFIX, "alice")
    await stage.converge({"alice": {"env": {"COLOUR": "red"}}})
    ours = stage.seen("alice").id
    late = stage.host.add_container(successor, stage.host.box(NAME).labels, phase=Phase.CREATED)
    await stage.converge({"alice": {"env": {"COLOUR": "blue"}}})
    assert late not in ids(stage).values()
    assert ids(stage).keys() == {NAME}
    assert ids(stage)[NAME] != ours


async def test_a_snapshot_under_a_name_of_a_swap_is_still_foreign(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.converge({"alice": {"env": {"COLOUR": "red"}}})
    stage.host.commit(NAME, SNAPSHOT)
    theirs = stage.host.run_image(naming.successor_name(PREFIX, "alice"), SNAPSHOT)
    await long(stage)
    assert stage.host.box(theirs).seen.phase is Phase.RUNNING


async def test_container_is_ours_after_a_crash_following_the_create(stage: Stage):
    stage.write({"alice": "running"})
    stage.engine.answering["create"] = 3600.0
    await stage.start()
    await stage.after(60)
    ours = stage.seen("alice").id
    await stage.crash()
    stage.engine.answering.clear()
    await stage.start()
    await stage.quiet()
    assert ids(stage) == {NAME: ours}
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_volume_is_ours_after_a_crash_following_its_create(stage: Stage):
    await stage.converge({})
    stage.engine.answering["create_volume"] = 3600.0
    await stage.edit({"alice": "running"})
    await stage.after(60)
    await stage.crash()
    stage.engine.answering.clear()
    await stage.start()
    await stage.quiet()
    assert stage.statuses() == {"alice": "RUNNING"}
    assert stage.host.volumes.keys() == {VOLUME}


# --- a lost database


async def test_a_lost_database_adopts_everything_unchanged(stage: Stage):
    await stage.converge({"alice": "running", "bob": "paused", "carol": "stopped"})
    before = {name: stage.row(name) for name in ("alice", "bob", "carol")}
    await stage.lose_database()
    changes = len(stage.engine.changes)
    await stage.start()
    await stage.quiet()
    for name, row in before.items():
        known = stage.row(name)
        same = ("container_id", "session_api_key", "exposed_urls", "status", "volumes")
        assert {key: known[key] for key in same} == {key: row[key] for key in same}
    assert stage.engine.changes[changes:] == []
    # What was taken over is ours from now on, whatever becomes of its name.
    stage.host.rename(NAME, "my-alice")
    await stage.after(5)
    assert ids(stage)[NAME] == before["alice"]["container_id"]


async def test_a_database_lost_twice_loses_nothing(stage: Stage):
    await stage.converge({"alice": "running"})
    ours, key = stage.seen("alice").id, stage.row("alice")["session_api_key"]
    for _ in range(3):
        await stage.lose_database()
        await stage.start()
        await stage.quiet()
    assert ids(stage) == {NAME: ours}
    assert stage.row("alice")["session_api_key"] == key
    # The daemon's own, and that of the owner whose container it took over.
    assert len(stage.host.markers) == 2
    await stage.converge({"alice": {"env": {"COLOUR": "red"}}})


async def test_orphan_of_a_lost_database_needs_confirmation(stage: Stage):
    await stage.converge({"alice": "running", **{f"s{n}": "running" for n in range(10)}})
    await stage.lose_database()
    await stage.converge({f"s{n}": "running" for n in range(10)})
    await long(stage)
    await stage.days(30)
    assert "alice" in stage.phases()
    assert VOLUME in stage.host.volumes
    assert stage.notes.logged(events.GcHeld)
    await stage.operations.collect(allow_mass_delete=True)
    await long(stage)
    assert "alice" not in stage.phases()


# --- names that settings change


async def test_a_changed_prefix_keeps_the_workspace(tmp_path: Path):
    brief = {"workspace": {"path": "/w", "retain": "5s"}}
    async with Stage(tmp_path) as stage:
        await stage.converge({"alice": brief})
        ours = stage.seen("alice").id
        await stage.stop()
        stage.settings = stage.settings.model_copy(update={"container_name_prefix": "agents-"})
        await stage.start()
        await long(stage)
        assert ids(stage) == {"agents-alice": ours}
        assert not stage.queries.garbage()
        await stage.converge({"alice": {**brief, "env": {"V": "2"}}})
        await long(stage)
        made = stage.host.box("agents-alice").seen
        assert made.id != ours
        assert made.volumes == {VOLUME}
        assert stage.host.volumes.keys() == {VOLUME}


async def test_a_changed_prefix_and_a_lost_database_keep_everything(tmp_path: Path):
    async with Stage(tmp_path) as stage:
        await stage.converge({"alice": "running"})
        ours = stage.seen("alice").id
        await stage.lose_database()
        stage.settings = stage.settings.model_copy(update={"container_name_prefix": "agents-"})
        await stage.start()
        await long(stage)
        assert ids(stage) == {"agents-alice": ours}
        assert stage.host.volumes.keys() == {VOLUME}


# --- volumes


async def test_foreign_volume_is_an_error_with_a_fix(stage: Stage):
    stage.host.add_volume(VOLUME)
    await stage.converge({"alice": "running", "bob": "running"})
    assert stage.statuses() == {"alice": "ERROR", "bob": "RUNNING"}
    reason = stage.row("alice")["reason"]
    assert "reconciler adopt alice" in reason
    assert "remove it" not in reason
    await long(stage)
    assert VOLUME in stage.host.volumes


async def test_restored_workspace_without_labels_is_used(stage: Stage):
    await stage.converge({"alice": "stopped", "bob": "running"})
    await stage.stop()
    stage.host.remove(NAME)
    stage.host.remove_volume(VOLUME)
    stage.host.add_volume(VOLUME)
    await stage.start()
    await stage.quiet()
    assert stage.statuses() == {"alice": "STOPPED", "bob": "RUNNING"}
    assert stage.seen("alice").volumes == {VOLUME}
    # Nothing proves that its content may go.
    await stage.converge({"bob": "running"})
    await stage.days(30)
    assert VOLUME in stage.host.volumes


async def test_adopted_volume_is_used_and_never_removed(stage: Stage):
    stage.host.add_volume(VOLUME)
    await stage.converge({"alice": "running", "bob": "running"})
    answer = await stage.operations.adopt("alice", None)
    assert answer == {"sandbox": "alice", "adopted": [VOLUME]}
    await stage.quiet()
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}
    assert stage.seen("alice").volumes == {VOLUME}
    await stage.restart()
    await stage.converge({"alice": {"env": {"V": "2"}}, "bob": "running"})
    assert stage.seen("alice").volumes == {VOLUME}
    await stage.converge({"bob": "running"})
    await stage.days(30)
    assert VOLUME in stage.host.volumes
    await stage.converge({"alice": "running", "bob": "running"})
    assert stage.seen("alice").volumes == {VOLUME}


async def test_a_volume_of_another_name_is_adopted_by_its_name(stage: Stage):
    stage.host.add_volume("from-backup")
    await stage.converge({"alice": "stopped"})
    with pytest.raises(Refused, match="has the workspace"):
        await stage.operations.adopt("alice", "from-backup")
    await stage.converge({"alice": "stopped", "bob": {"workspace": None}})
    await stage.operations.adopt("bob", "from-backup")
    await stage.converge({"alice": "stopped", "bob": "running"})
    assert stage.seen("bob").volumes == {"from-backup"}
    with pytest.raises(Refused, match="is the workspace of bob"):
        await stage.manager.ownership.adopt("carol", "from-backup")


async def test_missing_objects_cannot_be_adopted(stage: Stage):
    await stage.converge({"alice": {"workspace": None, "state": "stopped"}})
    for name, volume, words in [
        ("nobody", None, "declare it"),
        ("alice", "no-such", "does not exist"),
    ]:
        with pytest.raises(NotFound, match=words):
            await stage.operations.adopt(name, volume)
    await stage.stop()
    stage.host.remove(NAME)
    await stage.start()
    with pytest.raises(NotFound, match="neither"):
        await stage.manager.ownership.adopt("carol", None)


async def test_changed_instance_is_an_error(stage: Stage):
    await stage.converge({"alice": "running"})
    ours = stage.seen("alice").id
    await stage.stop()
    changed = {"instance": "prod", "container_name_prefix": "agents-"}
    former = stage.settings
    stage.settings = stage.settings.model_copy(update=changed)
    stage.engine.instance = "prod"
    await stage.converge({"alice": "running", "bob": "running"})
    await long(stage)
    assert stage.statuses() == {"alice": "ERROR", "bob": "RUNNING"}
    reason = stage.row("alice")["reason"]
    assert "instance 'default'" in reason
    assert "reconciler adopt alice" in reason
    assert ids(stage).keys() == {NAME, "agents-bob"}
    # The way on: the old container goes, the workspace is adopted.
    stage.host.remove(NAME)
    await stage.operations.adopt("alice", VOLUME)
    await stage.quiet()
    assert stage.host.box("agents-alice").seen.volumes == {VOLUME}
    # And the way back.
    await stage.stop()
    stage.settings, stage.engine.instance = former, "default"
    assert ours not in ids(stage).values()


async def test_a_new_database_with_another_instance_takes_no_volume(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.lose_database()
    stage.settings = stage.settings.model_copy(update={"instance": "prod"})
    stage.engine.instance = "prod"
    await stage.converge({"alice": "running"})
    await long(stage)
    assert stage.statuses() == {"alice": "ERROR"}
    assert "instance 'default'" in stage.row("alice")["reason"]
    assert ids(stage).keys() == {NAME}


# --- stand-ins


async def test_a_stand_in_that_was_left_over_goes(stage: Stage):
    await stage.converge({"alice": "running"})
    claim = stage.store.claim("alice")
    name = naming.stand_in_name(PREFIX, "alice")
    marks = labels("default", "alice", owner=stage.store.owner, nonce=claim.pending[name])
    stage.host.add_container(name, marks, phase=Phase.CREATED, image=IMAGE)
    await stage.after(100)
    assert ids(stage).keys() == {NAME}


# --- two daemons


@pytest.fixture
async def other(stage: Stage, tmp_path: Path):
    """A second daemon with another database and the same instance on the same engine."""
    folder = tmp_path / "other"
    folder.mkdir()
    async with stage.beside(folder) as made:
        yield made


async def test_two_daemons_leave_each_other_alone_and_both_report_it(stage: Stage, other: Stage):
    await stage.converge({"alice": "running", "mine": "running"})
    first = ids(stage)
    await other.converge({"alice": {"env": {"V": "2"}}, "theirs": "running"})
    await long(stage)
    made = ids(stage)
    assert first.items() <= made.items()
    assert made.keys() == {NAME, f"{PREFIX}mine", f"{PREFIX}theirs"}
    assert stage.statuses() == {"alice": "RUNNING", "mine": "RUNNING"}
    assert other.statuses() == {"alice": "ERROR", "theirs": "RUNNING"}
    for one in (stage, other):
        (line,) = one.notes.logged(events.OwnerConflict)
        assert "instance" in line["hint"]
        assert not one.notes.logged(events.GarbageFound)
        assert one.manager.owners.conflict


async def test_two_daemons_that_start_at_once_notice_each_other(stage: Stage, other: Stage):
    await asyncio.gather(stage.converge({"a": "running"}), other.converge({"b": "running"}))
    await long(stage)
    assert len(stage.notes.logged(events.OwnerConflict)) == 1
    assert len(other.notes.logged(events.OwnerConflict)) == 1
    assert ids(stage).keys() == {f"{PREFIX}a", f"{PREFIX}b"}


async def test_stopped_rival_keeps_its_objects(stage: Stage, other: Stage):
    await stage.converge({"mine": "running"})
    await other.converge({"alice": "running"})
    theirs = ids(stage)[NAME]
    await other.stop()
    await stage.converge({"mine": "running", "alice": {"env": {"V": "2"}}})
    await stage.restart()
    await long(stage)
    assert ids(stage)[NAME] == theirs
    assert stage.statuses() == {"mine": "RUNNING", "alice": "ERROR"}
    await other.start()
    await long(other)
    assert ids(stage)[NAME] == theirs
    assert other.statuses() == {"alice": "RUNNING"}


async def test_database_wrongly_held_lost_regains_its_objects(stage: Stage, other: Stage):
    await stage.converge({"alice": "running"})
    ours = stage.seen("alice").id
    await stage.stop()
    await other.converge({"alice": "running"})
    assert ids(other) == {NAME: ours}
    await stage.start()
    await long(stage)
    assert ids(stage) == {NAME: ours}
    assert stage.statuses() == {"alice": "RUNNING"}
    assert other.statuses() == {"alice": "ERROR"}


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("again", [1, 2])
async def test_two_daemons_that_both_lose_their_database_share_no_container(
    stage: Stage, other: Stage, *, again: int, down: bool
):
    await stage.converge({"alice": "running", "mine": "running"})
    await other.converge({"theirs": "running"})
    first = ids(stage)
    await stage.lose_database()
    await stage.start()
    await long(stage)
    for _ in range(again):
        await other.lose_database()
        await other.converge({"alice": {"env": {"V": "2"}}, "theirs": "running"})
        await long(other)
    if down:
        await stage.restart()
        await long(stage)
    assert ids(stage) == first
    assert stage.statuses() == {"alice": "RUNNING", "mine": "RUNNING"}
    assert other.statuses() == {"alice": "ERROR", "theirs": "RUNNING"}
    for one in (stage, other):
        assert one.notes.logged(events.OwnerConflict)


async def test_one_of_two_new_databases_takes_over_what_a_lost_one_made(stage: Stage, other: Stage):
    await stage.converge({"alice": "running"})
    first = ids(stage)
    await stage.lose_database()
    await asyncio.gather(stage.start(), other.converge({"alice": {"env": {"V": "2"}}}))
    await long(stage)
    assert ids(stage) == first or len(set(ids(stage).values()) & set(first.values())) == 0
    assert sorted([*stage.statuses().values(), *other.statuses().values()]) == ["ERROR", "RUNNING"]
    for one in (stage, other):
        assert one.notes.logged(events.OwnerConflict)


async def test_the_marker_of_a_lost_owner_goes_with_its_last_object(stage: Stage):
    await stage.converge({"alice": {"workspace": None}})
    await stage.lose_database()
    await stage.start()
    await stage.quiet()
    assert len(stage.host.markers) == 2
    await stage.converge({"alice": {"workspace": None, "env": {"COLOUR": "red"}}})
    await long(stage)
    assert stage.host.markers.keys() == {naming.marker_name("default", stage.store.owner)}


@pytest.mark.parametrize("database", ["kept", "lost"])
async def test_past_marker_events_reveal_no_rival(stage: Stage, database: str):
    await stage.converge({"alice": "running"})
    before = ids(stage)
    await stage.lose_database()
    await stage.start()
    await stage.quiet()
    past = list(stage.host.markers)
    assert len(past) == 2
    await (stage.lose_database() if database == "lost" else stage.stop())
    await stage.start()
    for marker in past:
        event = EngineEvent(EventKind.VOLUME, marker, "create", sandbox="", at=0.0)
        stage.manager.informer.handle(event)
    await long(stage)
    assert not stage.manager.owners.conflict
    assert (ids(stage), stage.statuses()) == (before, {"alice": "RUNNING"})


async def test_engine_that_refuses_markers_adopts_nothing(stage: Stage):
    await stage.converge({"alice": "running"})
    ours = stage.seen("alice").id
    await stage.lose_database()
    stage.engine.fail_next("create_marker", Refused("403"), times=100)
    await stage.start()
    await stage.after(100)
    assert stage.notes.logged(events.OwnerUnmarked)
    assert ids(stage) == {NAME: ours}
    assert stage.statuses() == {"alice": "ERROR"}


async def test_stopped_daemon_does_not_recreate_its_marker(stage: Stage):
    await stage.converge({"alice": "running"})
    marker = naming.marker_name("default", stage.store.owner)
    stage.engine.latency["create_marker"] = 1.0
    stage.host.remove_volume(marker)
    await stage.after(0.5)
    await stage.stop()
    await stage.after(5)
    assert marker not in stage.host.markers


@pytest.mark.parametrize("error", [EngineError("500"), EngineTimeout("no answer"), Refused("403")])
async def test_failed_marker_removal_proves_nothing(stage: Stage, error: EngineError):
    await stage.converge({"alice": "running"})
    ours = stage.seen("alice").id
    await stage.lose_database()
    stage.engine.fail_next("remove_marker", error, times=2)
    await stage.start()
    await long(stage)
    assert ids(stage) == {NAME: ours}
    assert stage.statuses() == {"alice": "RUNNING"}
    assert not stage.notes.logged(events.OwnerConflict)


async def test_pruned_marker_is_recreated(stage: Stage):
    await stage.converge({"alice": "running"})
    marker = naming.marker_name("default", stage.store.owner)
    stage.host.remove_volume(marker)
    await stage.after(1)
    assert marker in stage.host.markers
    assert not stage.notes.logged(events.OwnerConflict)


async def test_container_of_a_stopped_rival_can_be_adopted(stage: Stage, other: Stage):
    await stage.converge({"mine": "running"})
    await other.converge({"alice": "running"})
    theirs = ids(stage)[NAME]
    await other.stop()
    await stage.converge({"mine": "running", "alice": "running"})
    assert stage.statuses() == {"mine": "RUNNING", "alice": "ERROR"}
    answer = await stage.operations.adopt("alice", None)
    assert set(answer["adopted"]) == {NAME, VOLUME}
    await stage.quiet()
    assert ids(stage)[NAME] == theirs
    assert stage.statuses() == {"mine": "RUNNING", "alice": "RUNNING"}


# --- what is shown


@pytest.mark.parametrize(
    ("state", "shown"), [("running", True), ("paused", True), ("stopped", False)]
)
async def test_only_a_live_sandbox_shows_its_urls(stage: Stage, state: str, *, shown: bool):
    await stage.converge({"alice": "running"})
    await stage.converge({"alice": state})
    assert bool(stage.row("alice")["exposed_urls"]) is shown
    stage.host.kill(NAME)
    stage.engine.hang("start")
    await stage.after(0.1)
    assert stage.row("alice")["exposed_urls"] == []
    stage.engine.release("start")
