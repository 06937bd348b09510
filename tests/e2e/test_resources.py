"""What runs out: the state directory's disk, file descriptors, and room for what a sandbox says."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import World, box, web
from tests.store.conftest_store import fill, small_disk

PAGE = 4096
BRITTLE = {"path": "/health", "startup_grace": "1s", "interval": "100ms", "failures": 2}
GOALS = {"running": {"running"}, "paused": {"paused"}, "stopped": {"created", "exited"}}


@pytest.fixture
def disk(world: World) -> Iterator[Path]:
    """The state directory, on a small file system of its own."""
    world.daemon.state_dir.parent.mkdir(exist_ok=True)
    with small_disk(world.daemon.state_dir, "1m") as folder:
        yield folder
        # Nothing of it may be busy when it goes.
        world.daemon.close()


def started_at(world: World, *sandboxes: str) -> dict[str, str]:
    return {name: world.inspect(name)["State"]["StartedAt"] for name in sandboxes}


def story(world: World, sandbox: str) -> list[str]:
    return [entry["event"] for entry in world.ask(f"/v1/events?sandbox={sandbox}")]


@contextmanager
def full_but(folder: Path, pages: int) -> Iterator[None]:
    """All the space is taken but for some pages, until the end of the block."""
    filler = fill(folder)
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - pages * PAGE))
    yield
    filler.unlink()


def test_a_full_disk_stops_nothing_and_is_got_over(world: World, disk: Path) -> None:
    alice = web(health=BRITTLE)
    world.start(alice=alice, bob=box(), carol=box("paused"), dave=box())
    before, ports = started_at(world, "bob", "carol"), world.ports("alice")
    keys = {name: world.key(name) for name in ("alice", "bob", "carol")}
    filler = fill(disk)
    # Edits, a crash, and what would need a new lease.
    world.declare(alice=alice, bob=box("paused"), carol=box(), erin=web())
    world.wait(lambda: set(world.names()) == {"alice", "bob", "carol"})
    world.wait(lambda: (world.state("bob"), world.state("carol")) == ("paused", "running"))
    world.docker.kill(world.name("alice"))
    world.wait(lambda: world.row("alice")["restarts"] == 1)
    world.wait(lambda: world.row("alice")["status"] == "RUNNING")
    world.run_in("alice", "mv /www/health /www/aside")
    world.daemon.wait_event("sandbox.unhealthy", sandbox="alice")
    world.wait(lambda: world.row("alice")["restarts"] >= 2)
    world.wait(lambda: world.state("alice") == "running")
    world.run_in("alice", "mv /www/aside /www/health")
    world.wait_error("erin", "free space")
    assert started_at(world, "bob", "carol") == before
    assert "free space on its disk" in world.daemon.wait_event("store.write_failed")["error"]
    assert re.search("state: .*free space", world.daemon.cli("status").stdout)
    assert "free space" in world.daemon.status()["store"]["error"]

    filler.unlink()
    world.daemon.wait_event("store.recovered")
    world.converge("alice", "bob", "carol", "erin")
    assert world.ask("/v1/status")["store"]["error"] is None
    assert len(world.daemon.events("store.write_failed")) == 1

    # Nothing is lost: neither what was written meanwhile, nor what could not be.
    restarts, after = world.row("alice")["restarts"], started_at(world, *world.names())
    world.daemon.kill9()
    world.daemon.start()
    world.converge("alice", "bob", "carol", "erin")
    assert started_at(world, *after) == after
    assert world.row("alice")["restarts"] == restarts
    assert {name: world.key(name) for name in keys} == keys
    assert world.ports("alice") == ports
    assert "dave" in world.volumes()
    assert {"sandbox.removed", "record.deleted"} <= set(story(world, "dave"))
    assert {"sandbox.died", "sandbox.unhealthy"} <= set(story(world, "alice"))
    assert "Traceback" not in "\n".join(world.daemon.raw)


EDITS: list[dict[str, Any]] = [
    {"alice": web(), "bob": box("paused")},
    {"alice": web(), "bob": box(), "carol": box()},
    {"alice": web(env={"COLOUR": "red"}), "bob": box("stopped"), "carol": box()},
    {"alice": web(env={"COLOUR": "red"}), "carol": box("paused")},
]


@pytest.mark.timeout(300)
def test_a_disk_that_is_full_at_some_write_loses_nothing(world: World, disk: Path) -> None:
    world.start(alice=web())
    key, ports = world.key("alice"), world.ports("alice")
    failed = []
    for number, pages in enumerate((0, 1, 3, 6)):
        records = EDITS[number % len(EDITS)]
        # After an orderly end there is no log of writes whose room could be used again.
        world.daemon.terminate()
        world.daemon.start()
        world.converge()
        mark = world.daemon.mark()
        with full_but(disk, pages):
            world.declare(**records)
            # Whatever else waits for room, what is to go goes.
            world.wait(lambda wanted=records: set(world.names()) <= set(wanted))
            world.wait(lambda wanted=records: as_far_as_there_was_room(world, wanted))
        world.converge(*records)
        failed += [pages] * bool(world.daemon.events("store.write_failed", since=mark))
        world.daemon.kill9()
        world.daemon.start()
        world.converge(*records)
        assert {
            name for name, it in records.items() if world.state(name) not in GOALS[it["state"]]
        } == set()
        assert (world.key("alice"), world.ports("alice")) == (key, ports)
    print("the disk was full at", failed)
    assert len(failed) >= 3, failed
    assert "Traceback" not in "\n".join(world.daemon.raw)


def as_far_as_there_was_room(world: World, wanted: dict[str, Any]) -> bool:
    """Whether each sandbox is as desired, or waits for room to be created."""
    rows = world.rows()
    waiting = {name for name, row in rows.items() if "free space" in row["reason"]}
    settled = {name for name in wanted if world.state(name) in GOALS[wanted[name]["state"]]}
    return set(wanted) <= settled | waiting


@pytest.mark.parametrize("orderly", [True, False])
def test_a_start_on_a_full_disk_takes_care_of_what_is_there(
    world: World, disk: Path, *, orderly: bool
) -> None:
    world.start(alice=box(), bob=box(), carol=box())
    before, keys = started_at(world, "alice", "bob"), {n: world.key(n) for n in world.names()}
    world.daemon.terminate() if orderly else world.daemon.kill9()
    world.docker.kill(world.name("carol"))
    world.declare(alice=box(), bob=box("paused"), carol=box(), dave=box())
    mark = world.daemon.mark()
    with full_but(disk, 0):
        world.daemon.start()
        world.daemon.wait_event("store.write_failed", since=mark)
        world.wait(lambda: world.state("bob") == "paused")
        world.wait(lambda: world.state("carol") == "running")
        world.wait_error("dave", "free space")
        assert started_at(world, "alice", "bob") == before
    world.daemon.wait_event("store.recovered", since=mark)
    world.converge("alice", "bob", "carol", "dave")
    world.daemon.kill9()
    world.daemon.start()
    world.converge("alice", "bob", "carol", "dave")
    assert started_at(world, "alice", "bob") == before
    assert {name: world.key(name) for name in keys} == keys
    assert "sandbox.died" in story(world, "carol")
    assert "Traceback" not in "\n".join(world.daemon.raw)


def test_a_first_start_on_a_full_disk_succeeds_once_there_is_room(world: World, disk: Path) -> None:
    world.declare(alice=box())
    with full_but(disk, 0):
        for _ in range(2):
            world.daemon.start()
            assert world.daemon.wait_exit() == 1
            assert "free space" in world.daemon.events("daemon.failed")[-1]["error"]
    world.daemon.start()
    world.converge("alice")
    assert "Traceback" not in "\n".join(world.daemon.raw)
