"""Exhausted resources: the state disk, file descriptors, and the size of sandbox output."""

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.ledger_check import is_written
from tests.e2e.world import World, box, web
from tests.harness.descriptors import at_most, highest
from tests.store.conftest_store import fill, small_disk

PAGE = 4096
BRITTLE = {"path": "/health", "startup_grace": "1s", "interval": "100ms", "failures": 2}
GOALS = {"running": {"running"}, "paused": {"paused"}, "stopped": {"created", "exited"}}


@pytest.fixture
def disk(world: World) -> Iterator[Path]:
    """The state directory, on a small file system."""
    world.daemon.state_dir.parent.mkdir(exist_ok=True)
    # A disk of this size is always too full to make anything on it.
    world.daemon.env |= {
        "RECONCILER_DISK_MIN_FREE": "0",
        "RECONCILER_DISK_MIN_FREE_PERCENT": "0",
    }
    with small_disk(world.daemon.state_dir, "1m") as folder:
        yield folder
        # Nothing of it may be busy when it goes.
        world.daemon.close()


def started_at(world: World, *sandboxes: str) -> dict[str, str]:
    return {name: world.inspect(name)["State"]["StartedAt"] for name in sandboxes}


def history(world: World, sandbox: str) -> list[str]:
    return [entry["event"] for entry in world.ask(f"/v1/events?sandbox={sandbox}")]


@contextmanager
def full_but(folder: Path, pages: int) -> Iterator[None]:
    """All the space is taken but for some pages, until the end of the block."""
    filler = fill(folder)
    with filler.open("r+b") as file:
        file.truncate(max(0, filler.stat().st_size - pages * PAGE))
    yield
    filler.unlink()


def test_a_full_disk_blocks_no_sandbox_and_recovers(world: World, disk: Path) -> None:
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
    world.wait(lambda: world.row("alice")["restarts"] >= 1)
    world.wait(lambda: world.row("alice")["status"] == "RUNNING")
    world.run_in("alice", "mv /www/health /www/aside")
    world.daemon.wait_event("sandbox.unhealthy", sandbox="alice")
    world.wait(lambda: world.row("alice")["restarts"] >= 2)
    world.run_between_restarts("alice", "test -e /www/health || mv /www/aside /www/health")
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
    world.wait(lambda: is_written(world))
    world.daemon.kill9()
    world.daemon.start()
    world.converge("alice", "bob", "carol", "erin")
    assert started_at(world, *after) == after
    assert world.row("alice")["restarts"] == restarts
    assert {name: world.key(name) for name in keys} == keys
    assert world.ports("alice") == ports
    assert "dave" in world.volumes()
    assert {"sandbox.removed", "record.deleted"} <= set(history(world, "dave"))
    assert {"sandbox.died", "sandbox.unhealthy"} <= set(history(world, "alice"))
    assert "Traceback" not in "\n".join(world.daemon.raw)


EDITS: list[dict[str, Any]] = [
    {"alice": web(), "bob": box("paused")},
    {"alice": web(), "bob": box(), "carol": box()},
    {"alice": web(env={"COLOUR": "red"}), "bob": box("stopped"), "carol": box()},
    {"alice": web(env={"COLOUR": "red"}), "carol": box("paused")},
]


@pytest.mark.timeout(300)
def test_a_full_disk_at_any_write_loses_nothing(world: World, disk: Path) -> None:
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
            # Deletions do not wait for room.
            world.wait(lambda wanted=records: set(world.names()) <= set(wanted))
            world.wait(lambda wanted=records: as_far_as_there_was_room(world, wanted))
            world.wait(lambda since=mark: is_written(world) or failures(world, since))
        world.converge(*records)
        failed += [pages] * bool(failures(world, mark))
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


def failures(world: World, since: int) -> list[dict[str, Any]]:
    return world.daemon.events("store.write_failed", since=since)


def as_far_as_there_was_room(world: World, wanted: dict[str, Any]) -> bool:
    """Whether each sandbox is as desired, or waits for room to be created."""
    rows = world.rows()
    waiting = {name for name, row in rows.items() if "free space" in row["reason"]}
    settled = {name for name in wanted if world.state(name) in GOALS[wanted[name]["state"]]}
    return set(wanted) <= settled | waiting


@pytest.mark.parametrize("orderly", [True, False])
def test_a_start_on_a_full_disk_manages_existing_sandboxes(
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
    assert "sandbox.died" in history(world, "carol")
    assert "Traceback" not in "\n".join(world.daemon.raw)


def test_a_first_start_on_a_full_disk_waits_for_room(world: World, disk: Path) -> None:
    world.declare(alice=box())
    with full_but(disk, 0):
        for _ in range(2):
            world.daemon.start()
            assert world.daemon.wait_exit() == 1
            assert "free space" in world.daemon.events("daemon.failed")[-1]["error"]
    world.daemon.start()
    world.converge("alice")
    assert "Traceback" not in "\n".join(world.daemon.raw)


# --- file descriptors


@pytest.mark.parametrize("few", [False, True], ids=["none", "few"])
def test_without_descriptors_nothing_counts_as_dead(world: World, *, few: bool) -> None:
    world.start(alice=box(), bob=web(health=BRITTLE), carol=box())
    before, mark = started_at(world, "bob", "carol"), world.daemon.mark()
    # The lowest five are in use for good; with a limit of 0 not even poll(2) works.
    limit = highest(pid_of(world)) + 4 if few else 5
    with at_most(pid_of(world), limit), ExitStack() as held:
        for _ in range(20):
            client = held.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(f"{world.daemon.runtime_dir}/control.sock")
        logged = world.daemon.wait_event("daemon.out_of_files", since=mark)
        assert "LimitNOFILE" in logged["error"]
        world.declare(alice=box(), bob=web(health=BRITTLE), carol=box("paused"), dave=web())
        world.docker.kill(world.name("alice"))
        if not few:
            rejected = world.daemon.wait_event("manifest.rejected", since=mark)
            assert "LimitNOFILE" in rejected["error"]
        # Many times as long as it takes to find a sandbox unhealthy.
        time.sleep(3)
        assert started_at(world, "bob", "carol") == before
    world.converge("alice", "bob", "carol", "dave")
    assert started_at(world, "bob", "carol") == before
    assert not world.daemon.events("sandbox.unhealthy", since=mark)
    assert len(warnings(world, mark)) < 10, world.daemon.tail()
    assert "Traceback" not in "\n".join(world.daemon.raw)


def pid_of(world: World) -> int:
    assert world.daemon.process is not None
    return world.daemon.process.pid


def warnings(world: World, since: int) -> list[dict[str, Any]]:
    return [line for line in world.daemon.logs[since:] if line.get("level") != "info"]


# --- what sandboxes say

LOUD = "head -c 1000000 /dev/zero | tr '\\0' x; exit 3"
ENDLESS = "head -c 100000000 /dev/zero | tr '\\0' y; echo; echo done; sleep 1000000"
REMEMBERED = 520  # characters of one line of a death
SHOWN = 4096  # bytes of one line of a log
GROWTH = 64 << 20  # bytes; the two streams together are over three times as large


def test_long_sandbox_output_is_cut_and_not_stored(world: World) -> None:
    calm, slow = box(), {"backoff": "1h", "max_backoff": "1h"}
    world.start(calm=calm)
    at_first = peak_memory(world)
    world.declare(
        calm=calm,
        loud=box(command=["sh", "-c", LOUD], restart=slow),
        endless=box(command=["sh", "-c", ENDLESS]),
    )
    world.wait(lambda: world.statuses().get("endless") == "RUNNING")
    world.wait(lambda: world.row("loud")["restarts"] == 1)
    world.wait_error("loud", "exit code 3", "x" * 100)
    assert max(map(len, world.row("loud")["last_exit"]["log_tail"])) <= REMEMBERED
    assert len(world.daemon.cli("status").stdout) < 10_000
    story_told = world.daemon.cli("events", "loud").stdout
    assert "sandbox.died" in story_told
    assert len(story_told) < 20_000
    for follow in ([], ["--follow"]):
        said = world.daemon.cli("logs", "loud", "--tail", "3", *follow)
        assert (said.returncode, len(said.stdout) <= 3 * (SHOWN + 1)) == (0, True)
        assert said.stdout.startswith("x" * 100)
    assert followed_until(world, "done", "endless") <= 2 * (SHOWN + 1)
    world.wait(lambda: world.row("calm")["status"] == "RUNNING")
    world.docker.kill(world.name("endless"))
    world.wait(lambda: world.row("endless")["restarts"] == 1)
    grown = peak_memory(world) - at_first
    print(f"the daemon's peak grew from {at_first >> 10} by {grown >> 10} KB")
    assert grown < GROWTH
    assert "Traceback" not in "\n".join(world.daemon.raw)


def followed_until(world: World, word: str, sandbox: str) -> int:
    """Follow a log from far back until a line is a word; return how much was shown."""
    command = [sys.executable, "-m", "reconciler", "logs", sandbox, "--follow", "--tail", "10000"]
    with subprocess.Popen(
        command, env=world.daemon.env, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        shown = 0
        for line in following.stdout:
            shown += len(line)
            if line.rstrip("\n") == word:
                break
        following.kill()
    return shown


def peak_memory(world: World) -> int:
    """The most that the daemon's process ever had in memory, in bytes."""
    status = Path(f"/proc/{pid_of(world)}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10
