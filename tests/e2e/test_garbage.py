"""Orphans are collected after their grace, and nothing else is."""

import json
from typing import Any

import pytest

from tests.e2e.ledger_check import is_written
from tests.e2e.world import World, box, world_of, world_on
from tests.harness.docker import Docker, labels
from tests.harness.faults import answer, matching
from tests.harness.proxy import FaultProxy

GRACE = {"RECONCILER_GC_GRACE": "1s"}


@pytest.fixture
def collecting(world: World) -> World:
    world.daemon.env.update(GRACE)
    return world


CONFIRM = ("gc", "--allow-mass-delete")


def orphan(world: World, name: str, *command: str) -> str:
    """Make a container of a database that is lost."""
    return world.add_container(world.name(name), *command, sandbox=name)


def confirmed(world: World) -> bool:
    """Confirm what is held; for a wait."""
    return world.ask("/v1/gc?allow_mass_delete=true", "POST") is not None


def test_orphans_in_every_state_are_removed_after_the_grace(collecting: World) -> None:
    made = {
        state: orphan(collecting, state) for state in ("created", "running", "paused", "exited")
    }
    for state in ("running", "paused", "exited"):
        collecting.docker.start(made[state])
    collecting.docker.pause(made["paused"])
    collecting.docker.kill(made["exited"])
    # One with our label that names no sandbox proves nothing.
    nameless = {"io.sandbox-reconciler.instance": collecting.instance.name}
    theirs = f"{collecting.instance.name}.x"
    collecting.docker.run(theirs, "sleep", "1000000", labels=nameless)
    collecting.wait(lambda: collecting.state("exited") == "exited")
    collecting.start(alice=box("stopped"))
    collecting.wait(lambda: len(collecting.daemon.events("garbage.found")) == 4)
    collecting.daemon.wait_event("gc.held")
    assert set(made.values()) < set(collecting.ids().values())
    assert collecting.daemon.cli(*CONFIRM).returncode == 0
    collecting.wait(lambda: set(collecting.ids()) == {collecting.name("alice"), theirs})
    # The engine is done with a removal before the daemon hears of it and tells.
    collecting.wait(lambda: len(collecting.daemon.events("garbage.removed")) == 4)


def test_a_dry_run_lists_removals_with_reasons(world: World) -> None:
    world.daemon.env["RECONCILER_GC_GRACE"] = "1h"
    world.start(alice=box("stopped"))
    ours = orphan(world, "stray")
    world.daemon.wait_event("garbage.found")
    world.docker.create_volume("unlabelled-" + world.instance.name)
    try:
        answer = world.daemon.cli("gc", "--dry-run", "--json")
    finally:
        world.docker.rm_volume("unlabelled-" + world.instance.name)
    (row,) = json.loads(answer.stdout)
    assert (row["kind"], row["name"], row["due"]) == ("container", world.name("stray"), False)
    assert row["why"].startswith("no record wants it")
    assert row["held"]
    assert ours in world.ids().values()
    world.daemon.terminate()
    assert world.name("stray") in world.daemon.cli("gc", "--dry-run").stdout


def test_workspaces_are_kept_for_their_retention(collecting: World) -> None:
    prefix = collecting.instance.volume("")
    for name, retain in (("brief", "1s"), ("long", "1h"), ("ever", "forever")):
        marks = labels(collecting.instance.name, name, retain=retain)
        collecting.docker.create_volume(f"{prefix}{name}", marks)
    collecting.start(alice=box("stopped"))
    collecting.wait(
        lambda: confirmed(collecting) and collecting.volumes() == {"alice", "long", "ever"}
    )

    def kept() -> dict[str, Any]:
        rows = json.loads(collecting.daemon.cli("gc", "--json").stdout)
        return {row["sandbox"]: row["remove_at"] for row in rows}

    # The engine is done with a removal before the daemon hears of it.
    collecting.wait(lambda: kept().keys() == {"long", "ever"})
    assert kept()["ever"] is None


def test_retention_counts_over_restarts(world: World) -> None:
    long, brief = ({"path": "/workspace", "retain": retain} for retain in ("1h", "3s"))
    world.start(alice=box("stopped", workspace=long), bob=box("stopped"))
    world.declare(bob=box("stopped"))
    world.daemon.wait_event("record.deleted", sandbox="alice")
    world.converge("bob")
    # What is not on disk yet may be lost.
    world.wait(lambda: is_written(world))
    shown = [row["since"] for row in world.ask("/v1/gc?dry_run=true", "POST")]
    world.daemon.kill9()
    world.daemon.start()
    world.converge("bob")
    after = world.ask("/v1/gc?dry_run=true", "POST")
    # The time in which no daemon ran does not count, so the shown date is later.
    assert [row["since"] >= since for row, since in zip(after, shown, strict=True)] == [True]
    world.declare(bob=box("stopped"), carol=box("stopped", workspace=brief))
    world.converge("bob", "carol")
    world.declare(bob=box("stopped"))
    world.daemon.wait_event("record.deleted", sandbox="carol")
    world.daemon.kill9()
    world.daemon.start()
    world.wait(lambda: world.volumes() == {"alice", "bob"})


def test_foreign_objects_are_never_changed(
    collecting: World, engine: Docker, foreign: list[str], tmp_path
) -> None:
    unlabelled = collecting.name("unlabelled")
    foreign.append(unlabelled)
    collecting.add_container(unlabelled)
    plain = collecting.instance.volume("plain")
    engine.create_volume(plain)
    try:
        with world_on(engine, tmp_path / "other", **GRACE) as other:
            theirs = orphan(other, "theirs")
            ours = orphan(collecting, "ours")
            collecting.start(alice=box("stopped"))
            collecting.wait(lambda: confirmed(collecting) and ours not in collecting.ids().values())
            assert theirs in other.ids().values()
        assert engine.exists(unlabelled)
        assert plain in engine.volumes()
    finally:
        engine.rm_volume(plain)


def test_nothing_is_collected_before_the_first_accepted_file(collecting: World) -> None:
    collecting.daemon.env["RECONCILER_RESYNC_INTERVAL"] = "1s"
    ours = orphan(collecting, "ours")
    collecting.daemon.write("version: 1\nsandboxes: {alice: {spec: no-such}, : }\n")
    collecting.daemon.start()
    collecting.daemon.wait_event("manifest.rejected")
    collecting.daemon.wait_event("daemon.ready")
    collecting.wait(lambda: collecting.ask("/v1/gc", "POST") is not None)
    assert json.loads(collecting.daemon.cli("gc", "--dry-run", "--json").stdout)[0]["due"] is False
    assert ours in collecting.ids().values()
    collecting.declare(alice=box("stopped"))
    collecting.wait(lambda: confirmed(collecting) and collecting.names() == ["alice"])


def test_a_failed_list_collects_nothing(proxied: World, proxy: FaultProxy) -> None:
    proxied.daemon.env.update(GRACE)
    orphans = {orphan(proxied, f"orphan-{number}") for number in range(2)}
    proxied.declare(alice=box("stopped"))
    lists = matching("GET", "/containers/json")
    proxy.fault(lists, answer(500), times=None)
    proxied.daemon.start()
    # Several times over: the grace has passed by then.
    proxied.wait(lambda: len(proxy.seen(lists)) >= 4)
    assert set(proxied.ids().values()) == orphans
    assert not proxy.seen(lambda request: request.changes)
    proxy.clear()
    proxied.wait(lambda: confirmed(proxied) and proxied.names() == ["alice"])


def test_a_record_that_returns_within_the_grace_keeps_its_container(world: World, tmp_path) -> None:
    world.daemon.env["RECONCILER_GC_GRACE"] = "1h"
    world.start(alice=box(), bob=box())
    ids = world.ids()
    world.daemon.terminate()
    # A new database, and a file that no longer names alice: nobody asked for a deletion.
    with world_of(world.instance, tmp_path / "new", RECONCILER_GC_GRACE="1h") as fresh:
        fresh.start(bob=box())
        fresh.daemon.wait_event("garbage.found")
        assert fresh.ids() == ids
        fresh.declare(alice=box(), bob=box())
        fresh.converge("alice", "bob")
        assert fresh.ids() == ids
