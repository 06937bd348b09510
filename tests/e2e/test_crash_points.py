"""The daemon dies at every request that changes something, before and after the engine does it.

Each leg is an edit, or a piece of bad luck, and takes the daemon some requests. It is done once
undisturbed to count them, then once more for each of them and each side of it; the next daemon has
to end where the undisturbed one did, with nothing lost, nothing left over, and nobody else touched.
"""

import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from tests.e2e.world import KEY, World, box, web
from tests.harness import faults
from tests.harness.docker import DockerError, labels
from tests.harness.faults import Request, matching
from tests.harness.proxy import FaultProxy

Record = dict[str, Any]
Over = Callable[[], bool]
Side = Literal["before", "after"]

STATES = {"running": {"running"}, "paused": {"paused"}, "stopped": {"created", "exited"}}
STATUS = {"running": "RUNNING", "paused": "PAUSED", "stopped": "STOPPED"}
BRIEF = {"path": "/workspace", "retain": 0}
PROBE = {"path": "/health", "interval": "100ms", "startup_grace": "30s"}
PATIENT = {"backoff": "1h", "max_backoff": "1h"}


def alice(state: str = "running", **more: Any) -> Record:
    return web(state, workspace=BRIEF, user="agent", health=PROBE, **more)


@contextmanager
def no_trouble(world: World) -> Iterator[Over]:
    yield lambda: True


@contextmanager
def crash(world: World) -> Iterator[Over]:
    started = world.inspect("alice")["State"]["StartedAt"]
    world.docker.kill(world.name("alice"))
    yield lambda: world.inspect("alice")["State"]["StartedAt"] > started


@contextmanager
def removal(world: World) -> Iterator[Over]:
    former = world.id("alice")
    world.docker.rm(world.name("alice"))
    yield lambda: world.id("alice") != former


@contextmanager
def garbage(world: World) -> Iterator[Over]:
    # A name of its own: what the daemon removed is not looked for again for a while.
    name = f"orphan-{secrets.token_hex(4)}"
    marks = labels(world.instance.name, name, retain="1s")
    volume = world.instance.volume(name)
    world.docker.create_volume(volume, marks)
    binds = {"Binds": [f"{volume}:/workspace"]}
    made = world.docker.create(world.name(name), labels=marks, host_config=binds)
    yield lambda: made not in world.ids().values()


@contextmanager
def taken_port(world: World) -> Iterator[Over]:
    port = world.ports("alice")[8000]
    with socket.create_server(("127.0.0.1", port)):
        yield lambda: world.ports("alice")[8000] != port


@dataclass(frozen=True)
class Leg:
    """From one record to the next; `trouble` comes first, and says when it is over.

    A chained one goes on from where it was, for its next record is always another.
    """

    before: Record | None
    after: Callable[[int], Record | None]
    trouble: Callable[[World], AbstractContextManager[Over]] = no_trouble
    fails: bool = False
    chained: bool = False


def to(record: Record | None) -> Callable[[int], Record | None]:
    return lambda _: record


def repaint(state: str = "running") -> Callable[[int], Record]:
    """An edit that replaces the container, another one each time."""
    return lambda number: alice(state, env={"COLOUR": str(number)})


def spoil(number: int) -> Record:
    return alice(command=[f"no-such-{number}"], init=False, restart=PATIENT)


# The points that each scenario has at least, so that none is lost unnoticed.
SCENARIOS: dict[str, tuple[int, list[Leg]]] = {
    "create": (10, [Leg(None, to(alice("paused")))]),
    "replace": (14, [Leg(alice(), repaint(), chained=True)]),
    "replace paused": (18, [Leg(alice("paused"), repaint("paused"), chained=True)]),
    "change state": (
        12,
        [
            Leg(alice(), to(alice("paused"))),
            Leg(alice("paused"), to(alice())),
            Leg(alice(), to(alice("stopped"))),
            Leg(alice("stopped"), to(alice())),
            Leg(alice("paused"), to(alice("stopped"))),
        ],
    ),
    "delete": (6, [Leg(alice(), to(None))]),
    "bad luck": (
        14,
        [
            Leg(alice(), to(alice()), crash),
            Leg(alice(), to(alice()), removal),
            Leg(alice(), to(alice()), garbage),
        ],
    ),
    "port taken": (14, [Leg(alice("stopped"), to(alice()), taken_port)]),
    "roll back": (18, [Leg(alice(restart=PATIENT), spoil, fails=True)]),
}


class Course:
    """One world, in which the legs are run over and over."""

    def __init__(self, world: World, proxy: FaultProxy) -> None:
        self.world, self.proxy = world, proxy
        self.stranger = world.name("stranger")
        self.number = 0
        world.declare(bob=box("stopped"))
        world.daemon.start()
        world.converge("bob")
        world.docker.run(self.stranger, "sleep", "1000000")
        self.untouched = self.bystanders()

    def run(self, leg: Leg) -> int:
        """Run the leg undisturbed, then from every point; return how many there were."""
        self.begin(leg)
        changes = self.attempt(leg, None)
        sides: tuple[Side, Side] = ("before", "after")
        for point in ((number, side) for number in range(changes) for side in sides):
            self.attempt(leg, point)
        return 2 * changes

    def begin(self, leg: Leg) -> None:
        if leg.before is not None:
            self.declare({**leg.before, "state": "running"})
            self.world.run_in("alice", "echo data > /workspace/file")
            self.declare(leg.before)

    def attempt(self, leg: Leg, point: tuple[int, Side] | None) -> int:
        """Go from before to after; return the number of changes that were asked for."""
        self.number += 1
        before, after = leg.before, leg.after(self.number)
        if not leg.chained:
            self.declare(before)
        kept = self.identity() if before and after else None
        first = len(self.proxy.requests)
        died = self.arm(point) if point else None
        with leg.trouble(self.world) as over:
            self.write(after)
            if died:
                assert died.wait(60), f"{point}: not reached\n{self.explain()}"
                self.world.daemon.wait_exit()
                self.proxy.clear()
                self.world.daemon.start()
            self.wait(point, lambda: self.settled(before if leg.fails else after, leg) and over())
        asked = [r for r in self.proxy.requests[first:] if r.changes]
        self.check(point, kept, asked, leg)
        return len(asked)

    def arm(self, point: tuple[int, Side]) -> threading.Event:
        """Kill the daemon at that change from now, on that side of it."""
        number, side = point
        seen: list[int] = []
        died = threading.Event()

        def count(request: Request) -> None:
            if request.changes:
                seen.append(request.number)
                look("before", request)

        def look(where: Side, request: Request) -> None:
            if where == side and seen[number:] == [request.number]:
                self.world.daemon.kill9()
                died.set()

        fault = faults.drop() if side == "before" else faults.cut()
        self.proxy.on_request(count)
        self.proxy.on_response(lambda request: look("after", request))
        self.proxy.fault(lambda request: seen[number:] == [request.number], fault)
        return died

    def declare(self, record: Record | None) -> None:
        self.write(record)
        self.wait(None, lambda: self.settled(record))

    def write(self, record: Record | None) -> None:
        self.world.declare(bob=box("stopped"), **({"alice": record} if record else {}))

    def wait(self, point: tuple[int, Side] | None, predicate: Callable[[], bool]) -> None:
        try:
            self.world.wait(predicate)
        except AssertionError as error:
            raise AssertionError(f"crash point {point}: {error}\n{self.explain()}") from error

    def explain(self) -> str:
        return f"{self.world.names()}\n{self.proxy.transcript()}"

    def settled(self, record: Record | None, leg: Leg | None = None) -> bool:
        """Whether the engine has what the record says, and nothing more, and the daemon agrees."""
        return self.agrees(record, leg) and self.holds(record)

    def agrees(self, record: Record | None, leg: Leg | None) -> bool:
        rows = self.world.rows()
        if leg and leg.fails:
            told = rows.get("alice", {"status": "", "reason": ""})
            return told["status"] == "ERROR" and f"no-such-{self.number}" in told["reason"]
        status = {"alice": STATUS[record["state"]]} if record else {}
        if {name: row["status"] for name, row in rows.items()} != {"bob": "STOPPED", **status}:
            return False
        answer = self.world.ask("/v1/convergence")
        return answer is not None and answer["converged"]

    def holds(self, record: Record | None) -> bool:
        wanted = {"bob", "alice"} if record else {"bob"}
        same = set(self.world.names()) == wanted == self.world.volumes()
        return same and (record is None or self.matches(record))

    def matches(self, record: Record) -> bool:
        try:
            found = self.world.inspect("alice")
        except DockerError:
            return False  # it was renamed since
        colour = record.get("env", {}).get("COLOUR")
        same = colour is None or f"COLOUR={colour}" in found["Config"]["Env"]
        return same and found["State"]["Status"] in STATES[record["state"]]

    def check(
        self,
        point: tuple[int, Side] | None,
        kept: tuple[str, dict[int, int]] | None,
        asked: list[Request],
        leg: Leg,
    ) -> None:
        world = self.world
        assert self.bystanders() == self.untouched, point
        if world.id("alice") is None:
            return
        key, ports = self.identity()
        makes = [json.loads(r.body) for r in asked if matching("POST", "/containers/create")(r)]
        assert {_key(made) for made in makes} <= {key}, f"{point}: more than one session key"
        if kept is None:
            return
        moved = leg.trouble is taken_port
        assert key == kept[0], point
        assert (ports == kept[1]) is not moved, point
        # An archive can be read of one that is paused or stopped, too.
        path = f"/containers/{world.name('alice')}/archive?path=/workspace/file"
        assert b"data\n" in world.docker._request("GET", path), point

    def identity(self) -> tuple[str, dict[int, int]]:
        return self.world.key("alice"), self.world.ports("alice")

    def bystanders(self) -> list[tuple[str, str, str]]:
        both = [self.world.inspect("bob"), self.world.docker.inspect(self.stranger)]
        return [(one["Id"], one["State"]["Status"], one["State"]["StartedAt"]) for one in both]


def _key(made: dict[str, Any]) -> str:
    return next(item.split("=", 1)[1] for item in made["Env"] if item.startswith(f"{KEY}="))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_daemon_that_dies_at_any_request(
    proxied: World, proxy: FaultProxy, foreign: list[str], name: str
) -> None:
    proxied.daemon.env["RECONCILER_GC_GRACE"] = "0s"
    proxied.daemon.env["RECONCILER_RESYNC_INTERVAL"] = "1s"
    foreign.append(proxied.name("stranger"))
    least, legs = SCENARIOS[name]
    course = Course(proxied, proxy)
    points = sum(course.run(leg) for leg in legs)
    print(f"{name}: {points} crash points")
    assert points >= least
