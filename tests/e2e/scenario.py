"""Edits and faults, repeated with a daemon that is killed at each possible point.

Each leg is done once undisturbed, then once for each point at which the daemon can be killed; the
next daemon has to end where the undisturbed one did, with nothing lost, nothing left over, and
nobody else touched.
"""

import json
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from tests.e2e.ledger_check import ONCE, LedgerCheck, is_written
from tests.e2e.world import KEY, World, box, web
from tests.harness.docker import DockerError, labels
from tests.harness.faults import Request, matching
from tests.harness.proxy import FaultProxy

Record = dict[str, Any]
Over = Callable[[], bool]

STATES = {"running": {"running"}, "paused": {"paused"}, "stopped": {"created", "exited"}}
STATUS = {"running": "RUNNING", "paused": "PAUSED", "stopped": "STOPPED"}
BRIEF = {"path": "/workspace", "retain": 0}
PROBE = {"path": "/health", "interval": "100ms", "startup_grace": "30s"}
PATIENT = {"backoff": "1h", "max_backoff": "1h"}


def alice(state: str = "running", **more: Any) -> Record:
    return web(state, workspace=BRIEF, user="agent", health=PROBE, **more)


@contextmanager
def no_trouble(_course: "Scenario") -> Iterator[Over]:
    yield lambda: True


@contextmanager
def crash(scenario: "Scenario") -> Iterator[Over]:
    world = scenario.world
    started = world.inspect("alice")["State"]["StartedAt"]
    world.docker.kill(world.name("alice"))
    yield lambda: world.inspect("alice")["State"]["StartedAt"] > started


@contextmanager
def removal(scenario: "Scenario") -> Iterator[Over]:
    world = scenario.world
    former = world.id("alice")
    scenario.history.let_go(world.name("alice"))
    world.docker.rm(world.name("alice"))
    yield lambda: world.id("alice") != former


@contextmanager
def garbage(scenario: "Scenario") -> Iterator[Over]:
    # A new name: the daemon does not search again for a while for what it removed.
    world, name = scenario.world, f"orphan-{secrets.token_hex(4)}"
    marks = labels(world.instance.name, name, retain="1s")
    volume = world.instance.volume(name)
    world.docker.create_volume(volume, marks)
    binds = {"Binds": [f"{volume}:/workspace"]}
    made = world.docker.create(world.name(name), labels=marks, host_config=binds)
    # They have no owner, so that a person has to confirm that they may go.
    confirm = "/v1/gc?allow_mass_delete=true"

    def over() -> bool:
        world.ask(confirm, "POST")
        return made not in world.ids().values()

    yield over


@contextmanager
def taken_port(scenario: "Scenario") -> Iterator[Over]:
    port = scenario.world.ports("alice")[8000]

    def over() -> bool:
        try:
            return scenario.world.ports("alice")[8000] != port
        except DockerError:
            return False  # between two names

    with socket.create_server(("127.0.0.1", port)):
        yield over


@dataclass(frozen=True)
class Leg:
    """From one record to the next; `trouble` comes first, and says when it is over.

    A chained one continues from its state, because its next record is always different.
    """

    before: Record | None
    after: Callable[[int], Record | None]
    trouble: Callable[["Scenario"], AbstractContextManager[Over]] = no_trouble
    fails: bool = False
    chained: bool = False

    def once(self, after: Record | None) -> list[str]:
        """What the ledger tells once, however often the daemon was killed meanwhile."""
        if self.trouble is crash:
            return ["sandbox.died"]
        if self.before is None or after is None:
            return ["record.added" if after else "record.deleted"]
        return ["record.changed"] if self.before != after else []


def to(record: Record | None) -> Callable[[int], Record | None]:
    return lambda _: record


def repaint(state: str = "running") -> Callable[[int], Record]:
    """An edit that replaces the container, another one each time."""
    return lambda number: alice(state, env={"COLOUR": str(number)})


def spoil(number: int) -> Record:
    return alice(command=[f"no-such-{number}"], init=False, restart=PATIENT)


class Death(Protocol):
    """A point at which the daemon is killed; as a string it says which."""

    certain: bool  # a leg that ends without it has failed

    def arm(self) -> None:
        """Let the daemon be killed there from now on."""

    def came(self) -> bool:
        """Tell whether it was."""

    def disarm(self) -> None:
        """Let no daemon be killed any more."""


class Scenario:
    """One world, in which the legs are run over and over."""

    def __init__(self, world: World, proxy: FaultProxy, foreign: list[str]) -> None:
        self.world, self.proxy = world, proxy
        self.stranger = world.name("stranger")
        foreign.append(self.stranger)
        world.daemon.env |= {"RECONCILER_GC_GRACE": "0s", "RECONCILER_RESYNC_INTERVAL": "1s"}
        self.number = 0
        self.deaths = 0
        world.declare(bob=box("stopped"))
        world.daemon.start()
        world.converge("bob")
        world.docker.run(self.stranger, "sleep", "1000000")
        self.untouched = self.bystanders()
        self.history = LedgerCheck(world, "alice")

    def begin(self, leg: Leg) -> None:
        if leg.before is not None:
            self.declare({**leg.before, "state": "running"})
            self.world.run_in("alice", "echo data > /workspace/file")
            self.declare(leg.before)

    def attempt(self, leg: Leg, death: Death | None = None) -> list[Request]:
        """Go from before to after; return the changes that were asked for."""
        self.number += 1
        try:
            return self._attempt(leg, death)
        except AssertionError as error:
            raise AssertionError(f"{death}: {error}\n{self.explain()}") from error

    def _attempt(self, leg: Leg, death: Death | None) -> list[Request]:
        before, after = leg.before, leg.after(self.number)
        if not leg.chained:
            self.declare(before)
        self.history.begin()
        kept = self.identity() if before and after else None
        first = len(self.proxy.requests)
        if death:
            death.arm()
        with leg.trouble(self) as over:
            self.write(after)
            end = before if leg.fails else after
            self.go_on(death, lambda: over() and self.settled(end, leg))
        asked = [r for r in self.proxy.requests[first:] if r.changes]
        self.check(kept, asked, leg)
        self.check_story(leg.once(after))
        return asked

    def go_on(self, death: Death | None, done: Over) -> None:
        """Wait until all is done, by a second daemon where the first is killed."""
        if death:
            self.await_death(death, done)
        self.world.wait(done)

    def await_death(self, death: Death, done: Over) -> None:
        # Once no connection is open, every request of the daemon is done.
        def came() -> bool:
            return death.came() and self.proxy.idle

        def survived() -> bool:
            # `done` also confirms what waits for a person. The daemon may still have to write.
            return done() and not death.certain and is_written(self.world)

        self.world.daemon.wait_until(lambda: came() or survived())
        died = death.came()
        death.disarm()
        if died:
            self.deaths += 1
            self.world.daemon.wait_exit()
            self.history.break_off()
            self.world.daemon.start()

    def declare(self, record: Record | None) -> None:
        self.write(record)
        self.world.wait(lambda: self.settled(record))
        self.history.rest()

    def write(self, record: Record | None) -> None:
        self.world.declare(bob=box("stopped"), **({"alice": record} if record else {}))

    def explain(self) -> str:
        logged = "\n".join(map(str, self.history.durable()[-30:]))
        return f"{self.world.names()}\n{logged}\n{self.proxy.transcript()}"

    def settled(self, record: Record | None, leg: Leg | None = None) -> bool:
        """Whether the engine has what the record says, and nothing more, and the daemon agrees."""
        return self.agrees(record, leg) and self.holds(record)

    def agrees(self, record: Record | None, leg: Leg | None) -> bool:
        rows = self.world.rows()
        if leg and leg.fails:
            return f"no-such-{self.number}" in rows.get("alice", {"reason": ""})["reason"]
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
        self, kept: tuple[str, dict[int, int]] | None, asked: list[Request], leg: Leg
    ) -> None:
        """No other was touched; key, ports and the workspace's content are what they were."""
        world = self.world
        assert self.bystanders() == self.untouched
        if world.id("alice") is None:
            return
        key, ports = self.identity()
        makes = [json.loads(r.body) for r in asked if matching("POST", "/containers/create")(r)]
        assert {_key(made) for made in makes} <= {key}, "more than one session key"
        if kept is None:
            return
        moved = leg.trouble is taken_port
        assert key == kept[0]
        assert (ports == kept[1]) is not moved
        # An archive can be read of one that is paused or stopped, too.
        path = f"/containers/{world.name('alice')}/archive?path=/workspace/file"
        assert b"data\n" in world.docker._request("GET", path)

    def check_story(self, once: list[str]) -> None:
        """The ledger tells how all came to be as it is, and nothing twice."""
        self.history.rest()
        logged = [event for event in ONCE for _ in range(self.history.count(event))]
        assert logged == once

    def identity(self) -> tuple[str, dict[int, int]]:
        return self.world.key("alice"), self.world.ports("alice")

    def bystanders(self) -> list[tuple[str, str, str]]:
        both = [self.world.inspect("bob"), self.world.docker.inspect(self.stranger)]
        return [(one["Id"], one["State"]["Status"], one["State"]["StartedAt"]) for one in both]


def _key(made: dict[str, Any]) -> str:
    return next(item.split("=", 1)[1] for item in made["Env"] if item.startswith(f"{KEY}="))
