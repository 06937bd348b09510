"""Orphans: noted once, durable, reported with their time, and kept while in doubt."""

from datetime import datetime

import pytest

from reconciler.core.errors import EngineTimeout
from reconciler.telemetry import events
from tests.fakes.host import labels
from tests.simulation.stage import DAY, PREFIX, Stage

VOLUME = f"openhands-workspace-{PREFIX}alice"


def garbage(stage: Stage) -> dict[str, dict]:
    return {row["name"]: row for row in stage.queries.orphans()}


async def test_orphan_is_noted_once(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.add_orphan("stray")
    await stage.after(200)
    await stage.restart()
    await stage.after(90)
    (line,) = stage.notes.logged(events.GarbageFound)
    assert (line["name"], line["remove_in"]) == (f"{PREFIX}stray", 300.0)
    row = garbage(stage)[f"{PREFIX}stray"]
    assert (row["kind"], row["due"]) == ("container", False)
    assert row["why"] == "no record wants it"
    await stage.after(30)
    assert "stray" not in stage.phases()
    assert len(stage.notes.logged(events.GarbageRemoved)) == 1
    await stage.after(60)
    assert not stage.store.orphans["container"]


async def test_orphan_claimed_by_a_record_is_released(stage: Stage):
    await stage.converge({"bob": "running"})
    stage.add_orphan("alice")
    await stage.after(200)
    assert list(garbage(stage)) == [f"{PREFIX}alice"]
    await stage.converge({"alice": "running", "bob": "running"})
    assert not garbage(stage)
    await stage.after(400)
    assert stage.phases() == {"alice": "running", "bob": "running"}
    assert not stage.store.orphans["container"]


async def test_nothing_is_collected_while_the_list_fails(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.add_orphan("stray")
    await stage.after(200)
    stage.engine.fail_next("list", EngineTimeout("hangs"), times=10)
    await stage.after(500)
    assert "stray" in stage.phases()
    assert garbage(stage)[f"{PREFIX}stray"]["remove_at"] is None
    await stage.after(600)
    assert "stray" not in stage.phases()


@pytest.mark.parametrize(
    ("label", "days"),
    [("2d", 2.0), ("0s", 0.0), ("", 7.0), ("nonsense", 7.0)],
    ids=["its label", "at once", "the setting", "the setting for nonsense"],
)
async def test_orphaned_volume_is_kept_for_its_labelled_retention(
    stage: Stage, label: str, days: float
):
    await stage.converge({"bob": "running"})
    stage.add_orphan_volume("alice", retain=label)
    await stage.after(60)
    if days:
        (line,) = stage.notes.logged(events.VolumeOrphaned)
        kept_until = datetime.fromisoformat(line["kept_until"]).timestamp()
        assert kept_until == pytest.approx(stage.wall() + days * DAY, abs=120)
        await stage.days(days - 0.1)
        assert VOLUME in stage.host.volumes
    await stage.days(0.1)
    assert VOLUME not in stage.host.volumes


async def test_volume_with_endless_retention_stays(stage: Stage):
    forever = {"workspace": {"path": "/w", "retain": "forever"}}
    await stage.converge({"alice": forever, "bob": "running"})
    await stage.converge({"bob": "running"})
    await stage.days(10_000)
    assert VOLUME in stage.host.volumes
    assert garbage(stage)[VOLUME]["remove_at"] is None


async def test_volume_without_retention_is_removed_with_its_sandbox(stage: Stage):
    brief = {"workspace": {"path": "/w", "retain": 0}}
    await stage.converge({"alice": brief, "bob": "running"})
    await stage.converge({"bob": "running"})
    await stage.after(5)
    assert VOLUME not in stage.host.volumes
    await stage.after(60)
    assert stage.store.identity("alice") is None
    assert not stage.store.orphans["volume"]


async def test_volume_in_use_outlives_its_retention(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    homeless = {"workspace": None, "on_change": "ignore"}
    await stage.converge({"alice": homeless, "bob": "running"})
    await stage.days(30)
    assert VOLUME in stage.host.volumes
    assert stage.phases()["alice"] == "running"


async def test_a_deletion_says_how_long_the_workspace_is_kept(stage: Stage):
    await stage.converge({"alice": "running", "bob": "running"})
    await stage.converge({"bob": "running"})
    (line,) = stage.notes.logged(events.VolumeOrphaned, sandbox="alice")
    assert (line["volume"], line["cause"]) == (VOLUME, "its record was removed")
    kept_until = datetime.fromisoformat(line["kept_until"]).timestamp()
    assert kept_until == pytest.approx(stage.wall() + 7 * DAY, abs=60)
    await stage.converge({"alice": "running", "bob": "running"})
    assert len(stage.notes.logged(events.VolumeClaimed, sandbox="alice")) == 1
    told = [entry.event for entry in await stage.store.events("alice")]
    assert told.index("volume.orphaned") < told.index("volume.claimed")


async def test_the_container_of_doctor_is_foreign_to_the_daemon(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.host.add_container("probe", labels("default", ""))
    await stage.after(720)
    assert not stage.notes.logged(events.GarbageFound)
    assert stage.phases() == {"alice": "running", "probe": "running"}
