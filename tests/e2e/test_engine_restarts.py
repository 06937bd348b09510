"""The engine ends, by SIGTERM and by SIGKILL in turn, under sandboxes in every state.

The short form is a few sandboxes and two restarts; with RECONCILER_TORTURE_ROUNDS set it is fifty
of them and six, with live-restore and without.
"""

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from scripts.engine import PrivateEngine
from tests.e2e.world import World, box, get, web, world_on
from tests.harness.docker import Docker, DockerError
from tests.harness.waiting import wait_until

Record = dict[str, Any]
LONG = "RECONCILER_TORTURE_ROUNDS" in os.environ
COUNT, RESTARTS = (50, 6) if LONG else (12, 2)
# Fifty take their time to end and to be restored on two cores.
DEADLINE = 300

DYING = {
    "command": ["sh", "-c", "sleep 0.2; exit 3"],
    "restart": {"backoff": "500ms", "max_backoff": "2s"},
}
MIX: list[Record] = [
    *(web(), box(), web("paused"), web("stopped"), box(**DYING), box("paused")),
    *(web(), box("stopped"), web(), web("paused"), box(), web()),
]
STATES = {"running": "running", "paused": "paused", "stopped": "exited"}
STATUS = {"running": "RUNNING", "paused": "PAUSED", "stopped": "STOPPED"}


@dataclass(frozen=True)
class Seen:
    """What the engine says of one sandbox. `kept` is what no restart may change."""

    kept: tuple[str, str, tuple[tuple[int, int], ...], bytes]  # id, key, ports, workspace's file
    state: str
    started: str


class Fleet:
    """The sandboxes of one world, by name; those that crash by themselves are `dying`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.records = {f"s{n:02}": it for n, it in enumerate(islice(cycle(MIX), COUNT))}
        self.dying = {name for name, it in self.records.items() if "restart" in it}
        self.steady = {n: it for n, it in self.records.items() if n not in self.dying}

    def launch(self) -> None:
        """Start them all, give each a file, and take them to their states."""
        self.world.declare(**{n: {**it, "state": "running"} for n, it in self.records.items()})
        self.world.daemon.start()
        self.await_statuses(dict.fromkeys(self.steady, "RUNNING"))
        self.world.wait(lambda: set(self.world.names()) == set(self.records), DEADLINE)
        # Not before: one whose port was taken meanwhile is replaced by another.
        for name in self.records:
            _put_file(self.world, name)
        self.world.declare(**self.records)
        self.await_rest()

    def await_rest(self) -> None:
        """Wait until the daemon and the engine have the steady ones as declared."""
        self.world.wait(self.is_as_declared, DEADLINE)
        self.await_statuses({name: STATUS[it["state"]] for name, it in self.steady.items()})

    def await_statuses(self, wanted: dict[str, str]) -> None:
        self.world.wait(lambda: wanted.items() <= self.world.statuses().items(), DEADLINE)

    def is_as_declared(self) -> bool:
        rows = self.world.docker.containers(self.world.instance.name)
        states = {row["Names"][0].removeprefix(f"/{self.world.name('')}"): row for row in rows}
        return all(
            name in states and states[name]["State"] == STATES[record["state"]]
            for name, record in self.steady.items()
        )

    def await_crashes(self) -> None:
        """Wait until each that dies was started once more."""
        for name, started in {name: self.look(name).started for name in self.dying}.items():
            try:
                self.world.wait(lambda: self.look(name).started > started, DEADLINE)  # noqa: B023
            except AssertionError as error:
                raise AssertionError(f"{self.explain(name)}\n{error}") from error

    def explain(self, name: str) -> str:
        """What the engine, the daemon and the ledger say of one that is stuck."""
        events = self.world.ask(f"/v1/events?sandbox={name}&limit=20")
        facts = [self.world.inspect(name)["State"], self.world.rows().get(name), events]
        return "\n".join([name, *(json.dumps(it) for it in facts)])

    def look(self, name: str) -> Seen:
        """Inspect a sandbox; while it is recreated, wait until a container has its name."""

        def seen() -> Seen | None:
            try:
                return self._look(name)
            except DockerError:
                return None

        found = self.world.wait(seen, DEADLINE)
        assert found is not None
        return found

    def _look(self, name: str) -> Seen:
        found = self.world.inspect(name)
        env = dict(item.split("=", 1) for item in found["Config"]["Env"])
        ports = tuple(self.world.ports(name).items())
        path = f"/containers/{self.world.name(name)}/archive?path=/workspace/file"
        with tarfile.open(fileobj=io.BytesIO(self.world.docker._request("GET", path))) as tar:
            file = tar.extractfile("file")
            content = file.read() if file else b""
        kept = (found["Id"], env["OH_SESSION_API_KEYS_0"], ports, content)
        return Seen(kept, found["State"]["Status"], found["State"]["StartedAt"])

    def restarts(self) -> dict[str, int]:
        """How often each steady one crashed, as far as is known."""
        return {n: row["restarts"] for n, row in self.world.rows().items() if n in self.steady}

    def look_at_all(self) -> dict[str, Seen]:
        return {name: self.look(name) for name in self.records}


def _put_file(world: World, name: str) -> None:
    buffer, content = io.BytesIO(), name.encode()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("file")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    path = f"/containers/{world.name(name)}/archive?path=/workspace"
    world.docker._request("PUT", path, buffer.getvalue())


@pytest.fixture(params=[True, False], ids=["live-restore", "plain"])
def own(
    request: pytest.FixtureRequest, start_engine: Callable[..., PrivateEngine]
) -> PrivateEngine:
    return start_engine(live_restore=request.param)


@pytest.fixture
def fleet(own: PrivateEngine, tmp_path: Path) -> Iterator[Fleet]:
    with world_on(Docker(own.host), tmp_path) as world:
        try:
            yield Fleet(world)
        finally:
            own.start(DEADLINE)


@pytest.mark.timeout(2400 if LONG else 400)
def test_repeated_engine_restarts(fleet: Fleet, own: PrivateEngine) -> None:
    fleet.launch()
    first = fleet.look_at_all()
    for number in range(RESTARTS):
        end = [own.terminate, own.kill][number % 2]
        mark, began = fleet.world.daemon.mark(), time.monotonic()
        restarts = fleet.restarts()
        end()
        fleet.world.daemon.wait_event("engine.lost", since=mark, timeout=DEADLINE)
        own.start(DEADLINE)
        up = time.monotonic() - began
        fleet.await_rest()
        whole = time.monotonic() - began
        print(f"{end.__name__}: engine up after {up:.1f} s, all at rest after {whole:.1f} s")
        fleet.await_crashes()
        check(fleet, first, survived=own.live_restore)
        # One that the engine ends in good order may be seen to end before the engine does.
        assert fleet.restarts() == restarts or end == own.terminate
    assert "Traceback" not in "\n".join(fleet.world.daemon.raw)


def test_an_unstartable_container_is_recreated(
    start_engine: Callable[..., PrivateEngine], tmp_path: Path
) -> None:
    own = start_engine()
    with world_on(Docker(own.host), tmp_path) as world:
        world.start(alice=web(restart={"backoff": "100ms", "max_backoff": "1s"}))
        world.run_in("alice", "echo precious > /workspace/file")
        former, key, ports = world.id("alice"), world.key("alice"), world.ports("alice")
        world.daemon.kill9()
        world.docker.kill(world.name("alice"))
        wait_until(lambda: world.state("alice") == "exited", DEADLINE)
        # As a runtime leaves it that was cut off: it makes no container of this id any more. The
        # engine removes what it can of that; a mount is what it cannot.
        remains = own.directory / "exec" / "runtime-runc" / "moby" / former
        remains.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(remains)], check=True)
        world.daemon.start()
        world.wait_replaced("alice", former)
        world.converge("alice")
        assert (world.key("alice"), world.ports("alice")) == (key, ports)
        assert world.run_in("alice", "cat /workspace/file") == "precious"
        assert world.daemon.wait_event("sandbox.replaced", sandbox="alice")
        assert world.names() == ["alice"]


def check(fleet: Fleet, first: dict[str, Seen], *, survived: bool) -> None:
    """Compare with what was before the first restart."""
    world, now = fleet.world, fleet.look_at_all()
    assert world.names() == sorted(fleet.records)
    assert world.volumes() == set(fleet.records)
    for name, it in now.items():
        if world.daemon.events("port.replaced", sandbox=name):
            # Another process, or the engine's former proxy, had its port when it was started.
            _, key, _, content = it.kept
            assert (key, content) == (first[name].kept[1], first[name].kept[3]), name
            print(f"{name} got another port")
        elif name in fleet.dying and it.kept[0] != first[name].kept[0]:
            # The engine's end left remains in the way of its start (ADR 9).
            made = world.daemon.events("sandbox.created", sandbox=name)
            assert made[-1]["cause"] == "the engine can no longer start it"
            assert it.kept[1:] == first[name].kept[1:]
            print(f"{name} was recreated")
        else:
            assert it.kept == first[name].kept, name
    for name, record in fleet.steady.items():
        assert now[name].state == STATES[record["state"]], name
        if survived or record["state"] == "stopped":
            assert now[name].started == first[name].started, f"{name} was started again"
    for row in world.rows().values():
        for url in row["exposed_urls"] if row["status"] == "RUNNING" else ():
            assert "A sandbox answers" in get(f"http://127.0.0.1:{url['port']}/")
