"""The mass-delete guard for orphans."""

import pytest

from reconciler.telemetry import events
from tests.simulation.stage import PREFIX, Stage

NAMES = [f"s{number:02}" for number in range(20)]
VOLUME = f"openhands-workspace-{PREFIX}"


def orphans(stage: Stage, names: list[str]) -> None:
    for name in names:
        stage.add_orphan(name)


def held(stage: Stage) -> list[str]:
    return [row["name"] for row in stage.queries.orphans() if row["held"]]


async def test_a_lost_database_and_one_record_remove_nothing(stage: Stage):
    await stage.converge(dict.fromkeys(NAMES, "running"))
    await stage.lose_database()
    await stage.converge({NAMES[0]: "running"})
    await stage.after(1000)
    assert stage.phases() == dict.fromkeys(NAMES, "running")
    (line,) = stage.notes.logged(events.GcHeld)
    assert (line["deletions"], line["of"]) == (19, 20)
    assert "reconciler gc --allow-mass-delete" in line["hint"]
    status = await stage.queries.status()
    assert status["garbage"]["held"] == NAMES[1:]
    assert "gc --allow-mass-delete" in status["garbage"]["reason"]
    rows = stage.queries.garbage()
    assert all(row["held"] and not row["due"] and row["remove_at"] is None for row in rows)
    assert all("gc --allow-mass-delete" in row["why"] for row in rows)


async def test_held_orphans_stay_held_over_restarts(stage: Stage):
    await stage.converge({"alice": "running"})
    orphans(stage, NAMES[:4])
    await stage.after(400)
    await stage.restart()
    await stage.operations.collect()
    await stage.after(400)
    assert set(NAMES[:4]) < set(stage.phases())


async def test_confirmed_collection_is_done_and_reported(stage: Stage):
    await stage.converge({"alice": "running"})
    orphans(stage, NAMES[:4])
    await stage.after(400)
    await stage.operations.collect(allow_mass_delete=True)
    await stage.after(60)
    assert stage.phases() == {"alice": "running"}
    assert stage.notes.logged(events.GcReleased)
    # The confirmation was for those, and for none that come later.
    orphans(stage, NAMES[4:8])
    await stage.after(600)
    assert set(NAMES[4:8]) < set(stage.phases())


async def test_a_confirmation_does_not_shorten_the_grace(stage: Stage):
    await stage.converge({"alice": "running"})
    orphans(stage, NAMES[:4])
    await stage.after(100)
    await stage.operations.collect(allow_mass_delete=True)
    await stage.after(100)
    assert set(NAMES[:4]) < set(stage.phases())
    await stage.after(200)
    assert stage.phases() == {"alice": "running"}


@pytest.mark.parametrize(("count", "goes"), [(3, True), (4, False)])
async def test_guard_limits_are_those_of_an_edit(stage: Stage, count: int, *, goes: bool):
    await stage.converge({"alice": "running"})
    orphans(stage, NAMES[:count])
    await stage.after(600)
    assert (stage.phases() == {"alice": "running"}) is goes


async def test_workspaces_without_records_are_held_too(stage: Stage):
    await stage.converge({"alice": "running"})
    for name in NAMES[:4]:
        stage.add_orphan_volume(name)
    await stage.after(100)
    await stage.days(8)
    assert len(held(stage)) == 4
    assert len(stage.host.volumes) == 5


async def test_deletions_of_an_edit_are_not_held_again(stage: Stage):
    await stage.converge(dict.fromkeys(NAMES, "running"))
    stage.write({NAMES[0]: "running"})
    await stage.manager.manifest_sync.read(allow_mass_delete=True)
    await stage.quiet()
    assert stage.phases() == {NAMES[0]: "running"}
    await stage.days(8)
    assert len(stage.host.volumes) == 1
    assert not stage.notes.logged(events.GcHeld)


async def test_a_held_orphan_whose_record_returns_is_released(stage: Stage):
    await stage.converge({"alice": "running"})
    orphans(stage, NAMES[:4])
    await stage.after(400)
    await stage.converge({"alice": "running", **dict.fromkeys(NAMES[:4], "running")})
    await stage.after(400)
    assert not held(stage)
    assert len(stage.phases()) == 5
    assert stage.notes.logged(events.GcReleased)
