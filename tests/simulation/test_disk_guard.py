"""Disk pressure: what waits, what continues, what is collected, and when it ends."""

import asyncio
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from reconciler.core.errors import EngineError, EngineUnavailable
from reconciler.resources import disk_guard
from reconciler.resources.disk_guard import Space, Statvfs
from reconciler.telemetry import events
from tests.fakes.host import IMAGE, id_of
from tests.simulation.stage import DAY, GIB, Stage

OLD, OLDER, YOUNG = "old:1", "older:1", "young:1"


async def full(stage: Stage) -> None:
    """Fill the state disk and wait until it is noticed."""
    stage.disks.state = 0.5
    await stage.after(11)


async def test_nothing_is_created_on_a_full_disk(stage: Stage):
    await stage.converge({"alice": "running"})
    await full(stage)
    await stage.edit({"alice": "running", "bob": "running", "carol": {"image": "elsewhere:1"}})
    await stage.after(30)
    assert stage.statuses() == {"alice": "RUNNING", "bob": "MISSING", "carol": "MISSING"}
    assert "state disk" in stage.row("bob")["reason"]
    assert "512.0 MiB of 100.0 GiB free" in stage.row("bob")["reason"]
    assert stage.engine.count("pull") == 0
    (said,) = stage.notes.logged(events.DiskPressure)
    assert (said["disk"], said["free"], said["total"]) == ("state disk", GIB // 2, 100 * GIB)
    state = await stage.queries.status()
    assert state["disk"]["pressure"] == [stage.row("bob")["reason"]]
    changes = {one["sandbox"]: one for one in stage.queries.plan()["changes"]}
    assert changes["bob"]["actions"] == []
    assert changes["bob"]["waiting_for"] == stage.row("bob")["reason"]
    assert stage.queries.convergence()["pending"] == ["bob", "carol"]


async def test_existing_sandboxes_continue_on_a_full_disk(stage: Stage):
    await stage.converge(dict.fromkeys(["a", "b", "c", "d", "e"], "running"))
    old = stage.seen("e").id
    await full(stage)
    stage.host.kill("oh-agent-server-a")
    await stage.edit({"a": "running", "b": "paused", "c": "stopped", "e": {"env": {"NEW": "yes"}}})
    await stage.after(30)
    assert stage.phases() == {"a": "running", "b": "paused", "c": "exited", "e": "running"}
    assert stage.seen("e").id == old
    assert (stage.row("e")["status"], "state disk" in stage.row("e")["next"]) == ("RUNNING", True)
    await stage.edit({"a": "running", "b": "running", "c": "running"})
    await stage.after(30)
    assert stage.phases() == {"a": "running", "b": "running", "c": "running"}


async def test_work_continues_above_the_upper_limit(stage: Stage):
    await stage.converge({"alice": "running"})
    await full(stage)
    await stage.edit({"alice": {"env": {"NEW": "yes"}}, "bob": "running"})
    for free in (1.2, 0.9, 1.4, 1.1):
        stage.disks.state = free
        await stage.after(11)
        assert stage.statuses()["bob"] == "MISSING"
    assert len(stage.notes.logged(events.DiskPressure)) == 1
    assert not stage.notes.logged(events.DiskRelieved)
    stage.disks.state = 1.6
    await stage.after(11)
    await stage.quiet()
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}
    assert len(stage.notes.logged(events.DiskRelieved)) == 1
    for free in (1.4, 1.1, 1.6, 1.2):
        stage.disks.state = free
        await stage.after(11)
        assert not stage.manager.disk.hold
    assert len(stage.notes.logged(events.DiskPressure)) == 1


async def test_a_restart_between_the_limits_does_not_open_the_gate(stage: Stage):
    await stage.converge({"alice": "running"})
    await full(stage)
    stage.disks.state = 1.2
    await stage.restart()
    await stage.edit({"alice": "running", "bob": "running"})
    await stage.after(30)
    assert stage.statuses() == {"alice": "RUNNING", "bob": "MISSING"}
    assert len(stage.notes.logged(events.DiskPressure)) == 2
    stage.disks.state = 2.0
    await stage.after(11)
    await stage.quiet()
    assert stage.statuses()["bob"] == "RUNNING"


async def test_disks_are_measured_before_the_first_sandbox(stage: Stage):
    stage.disks.state = 0.5
    stage.write({"alice": "running"})
    await stage.start()
    await stage.after(30)
    assert stage.phases() == {}
    assert "state disk" in stage.row("alice")["reason"]


async def test_nothing_is_created_before_the_disks_are_measured(stage: Stage):
    stage.disks.latency = 20.0
    stage.write({"alice": "running"})
    await stage.start()
    await stage.after(15)
    assert stage.phases() == {}
    assert "not measured yet" in stage.row("alice")["reason"]
    await stage.after(60)
    assert stage.phases() == {"alice": "running"}


async def test_unmeasurable_disk_blocks_nothing_and_is_logged(stage: Stage):
    stage.disks.error = TimeoutError()
    await stage.converge({"alice": "running"})
    await stage.after(31)
    assert stage.statuses() == {"alice": "RUNNING"}
    assert len(stage.notes.logged(events.DiskUnmeasured)) == 2  # one for each disk


async def test_unmeasurable_disk_keeps_its_last_value(stage: Stage):
    await stage.converge({"alice": "running"})
    await full(stage)
    stage.disks.error = OSError("stale handle")
    await stage.edit({"alice": "running", "bob": "running"})
    await stage.after(31)
    assert stage.statuses()["bob"] == "MISSING"
    stage.disks.error, stage.disks.state = None, 50
    await stage.after(11)
    await stage.quiet()
    assert stage.statuses()["bob"] == "RUNNING"


@pytest.mark.parametrize("local", [True, False])
async def test_an_engine_on_another_host_has_no_disk_here(stage: Stage, *, local: bool):
    stage.engine.local = local
    stage.disks.engine = 0.1
    stage.write({"alice": "running"})
    await stage.start()
    await stage.after(30)
    assert stage.statuses() == {"alice": "MISSING" if local else "RUNNING"}


async def test_engine_disk_is_found_after_the_engine_starts(stage: Stage):
    stage.disks.engine = 0.1
    stage.host.down = True
    stage.write({"alice": "running"})
    await stage.start()
    await stage.after(30)
    stage.host.down = False
    await stage.after(30)
    assert "engine disk" in stage.row("alice")["reason"]


async def test_two_folders_on_one_disk_are_one_disk(stage: Stage):
    async def same(_path: Path) -> Space:
        return Space(GIB // 2, 100 * GIB, 1)

    stage.disks = same
    stage.write({"alice": "running"})
    await stage.start()
    await stage.after(30)
    (said,) = stage.notes.logged(events.DiskPressure)
    assert said["disk"] == "disk"
    assert said["path"] == f"{stage.settings.state_dir}, /fake"


# --- images ---


async def pulled(stage: Stage, *images: str) -> None:
    """Pull each image for a sandbox that exists for a day, one after the other; ``keep`` stays."""
    stage.host.registry |= set(images)
    stage.host.image_size = 4 * GIB
    for image in images:
        await stage.converge({"keep": "running", "guest": {"image": image}})
        await stage.days(1)
    await stage.edit({"keep": "running"})
    await stage.quiet()
    assert set(images) <= stage.host.images


def collected(stage: Stage) -> list[str]:
    return [line["image"] for line in stage.notes.logged(events.ImageCollected)]


def leave(stage: Stage, free: float) -> None:
    """Set the free GiB of the engine disk, in addition to its images."""
    taken = len(stage.host.image_ids()) * stage.host.image_size / GIB
    stage.disks.engine = free + taken


async def test_least_recently_used_images_are_removed_first(stage: Stage):
    await pulled(stage, OLDER, OLD, YOUNG)
    await stage.days(2)
    assert not collected(stage)
    leave(stage, 0.5)
    await stage.after(11)
    assert collected(stage) == [OLDER]
    assert stage.host.images == {IMAGE, OLD, YOUNG}
    (line,) = stage.notes.logged(events.ImageCollected)
    assert (line["bytes"], line["image_id"]) == (4 * GIB, id_of(OLDER))
    # It was enough, so no shortage was logged.
    assert not stage.notes.logged(events.DiskPressure)
    assert not stage.manager.disk.hold


async def test_images_in_use_pinned_young_or_foreign_stay(tmp_path: Path):
    async with Stage(tmp_path, pinned_images=["pinned:1"]) as stage:
        stage.host.images |= {"theirs:1"}
        kept = ["pinned:1", "stopped:1", "replicas:1", "running:1"]
        refused = ["twice:1", "foreign:1"]
        everything = [*kept, *refused, OLD]
        await pulled(stage, *everything)
        await stage.days(2)
        await pulled(stage, YOUNG)
        stage.host.images.add("twice:1=mine")
        stage.host.add_container("somebody", image="foreign:1")
        wanting = {
            "keep": "running",
            "carol": {"state": "stopped", "image": "stopped:1"},
            "pool": {"image": "replicas:1", "replicas": 2},
            "dave": {"image": "running:1", "on_change": "ignore"},
        }
        await stage.converge(wanting)
        # No record names it any more, and the container that has it stays.
        await stage.converge({**wanting, "dave": {"on_change": "ignore"}})
        assert stage.seen("dave").image == "running:1"
        # A name that a record wants is enough, with or without a container.
        stage.host.remove("oh-agent-server-pool-2")
        stage.disks.engine = 0
        await stage.after(11)
        assert collected(stage) == [OLD]
        assert len(stage.notes.logged(events.DiskPressure)) == 1
        # The young one has come of age.
        await stage.days(1)
        assert collected(stage) == [OLD, YOUNG]
        assert stage.host.images == {IMAGE, "theirs:1", "twice:1=mine", *everything} - {OLD}
        asked = {target for verb, target in stage.engine.calls if verb == "remove_image"}
        assert asked == {id_of(image) for image in [*refused, OLD, YOUNG]}


async def test_pulled_image_is_stored_until_it_is_gone(stage: Stage):
    await pulled(stage, OLD)
    known = dict(stage.store.images)
    assert known[id_of(OLD)].reference == OLD
    await stage.restart()
    assert stage.store.images == known
    stage.host.images.discard(OLD)
    await pulled(stage, YOUNG)
    assert set(stage.store.images) == {id_of(YOUNG)}


async def test_an_image_that_was_there_before_a_pull_is_not_ours(stage: Stage):
    stage.host.images.add(OLD)
    stage.host.registry.add(OLD)
    await stage.converge({"alice": {"image": OLD, "pull": "always"}})
    assert stage.engine.count("pull") == 1
    assert not stage.store.images


async def test_removable_images_are_listed_with_their_time(stage: Stage):
    await pulled(stage, OLD, YOUNG)
    await stage.edit({"keep": "running", "alice": {"image": YOUNG}})
    await stage.quiet()
    rows = [row for row in stage.queries.garbage() if row["kind"] == "image"]
    ((name, due),) = [(row["name"], row["due"]) for row in rows]
    assert (name, due) == (OLD, False)
    assert datetime.fromisoformat(rows[0]["remove_at"]) - datetime.fromisoformat(
        rows[0]["since"]
    ) == timedelta(days=1)
    # `gc` only handles sandboxes and removes no image.
    assert not [row for row in await stage.operations.collect() if row["kind"] == "image"]
    stage.manager.informer.complete = False
    assert not [row for row in stage.queries.garbage() if row["kind"] == "image"]


async def test_image_use_is_recorded_while_it_lasts(stage: Stage):
    stage.host.registry.add(OLD)
    stage.host.image_size = 4 * GIB
    await stage.converge({"keep": "running", "guest": {"image": OLD}})
    await stage.days(30)
    await stage.converge({"keep": "running"})
    stage.disks.engine = 0
    await stage.after(61)
    assert not collected(stage)
    assert stage.store.clock() - stage.store.images[id_of(OLD)].used_at < DAY
    await stage.days(1)
    assert collected(stage) == [OLD]


@pytest.mark.parametrize("error", [EngineUnavailable("gone"), EngineError("layer is locked")])
async def test_failed_removal_is_logged_and_retried(stage: Stage, error: Exception):
    await pulled(stage, OLD)
    await stage.days(2)
    stage.engine.fail_next("remove_image", error)
    stage.disks.engine = 0
    await stage.after(11)
    assert not collected(stage)
    assert stage.notes.logged(events.ImageCollectFailed)[0]["error"] == str(error)
    await stage.after(61)
    assert collected(stage) == [OLD]


@pytest.mark.parametrize("verb", ["images", "image_id"])
async def test_incomplete_list_collects_nothing(stage: Stage, verb: str):
    await pulled(stage, OLD)
    await stage.days(2)
    stage.engine.fail_next(verb, EngineUnavailable("gone"), times=3)
    stage.disks.engine = 0
    await stage.after(11)
    assert stage.engine.count("remove_image") == 0
    await stage.after(190)
    assert collected(stage) == [OLD]


@pytest.mark.parametrize("verb", ["images", "image_id"])
async def test_pull_succeeds_without_a_stored_note(stage: Stage, verb: str):
    stage.host.registry.add(OLD)
    stage.engine.fail_next(verb, EngineUnavailable("gone"))
    await stage.converge({"alice": {"image": OLD}})
    assert stage.statuses() == {"alice": "RUNNING"}
    assert not stage.store.images


async def test_nothing_is_collected_while_a_list_is_missing(stage: Stage):
    await pulled(stage, OLD)
    await stage.days(2)
    stage.manager.informer.complete = False
    stage.disks.engine = 0
    await stage.after(11)
    assert stage.engine.count("remove_image") == 0


async def test_nothing_is_collected_while_a_record_cannot_be_read(stage: Stage):
    await pulled(stage, OLD)
    await stage.days(2)
    # It may name any image.
    stage.store._records._unreadable["bob"] = "made by a newer release"
    stage.disks.engine = 0
    await stage.after(11)
    assert stage.engine.count("remove_image") == 0
    del stage.store._records._unreadable["bob"]
    await stage.after(70)
    assert collected(stage) == [OLD]


async def test_nothing_is_collected_before_the_first_valid_file(stage: Stage):
    await pulled(stage, OLD)
    await stage.days(2)
    stage.store._facts.drop("desired-known")
    stage.disks.engine = 0
    await stage.after(11)
    assert stage.engine.count("remove_image") == 0


async def test_new_record_keeps_its_image_during_a_collection(stage: Stage):
    await pulled(stage, OLDER, OLD)
    await stage.days(2)
    stage.engine.latency["remove_image"] = 30.0
    stage.disks.engine = 0
    await stage.after(11)
    await stage.edit({"keep": "running", "alice": {"image": OLD}})
    await stage.after(120)
    assert collected(stage) == [OLDER]
    assert OLD in stage.host.images


async def test_full_state_disk_removes_no_image(stage: Stage):
    await pulled(stage, OLD)
    await stage.days(2)
    await full(stage)
    await stage.after(61)
    assert not collected(stage)


# --- the real thing ---


@pytest.mark.asyncio(loop_factories=["real"])
async def test_a_disk_is_measured(tmp_path: Path):
    space = await Statvfs()(tmp_path)
    assert 0 < space.free <= space.total
    assert space.device == tmp_path.stat().st_dev
    with pytest.raises(FileNotFoundError):
        await Statvfs()(tmp_path / "missing")


@pytest.mark.asyncio(loop_factories=["real"])
async def test_hanging_disk_uses_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked, answer = [], threading.Event()

    def hang(path: Path) -> Space:
        asked.append(path)
        answer.wait(60)
        return Space(1, 2, 3)

    monkeypatch.setattr(disk_guard, "space_of", hang)
    measure = Statvfs(limit=0.05)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await measure(tmp_path)
    assert asked == [tmp_path]
    answer.set()
    async with asyncio.timeout(60):
        while measure._calls.hung:  # noqa: ASYNC110 - the thread ends on its own
            await asyncio.sleep(0.01)
    assert await Statvfs(limit=60)(tmp_path) == Space(1, 2, 3)
