"""Random faults of the engine and its socket under random edits: afterwards all is as declared.

RECONCILER_TORTURE_ROUNDS says how many rounds there are, and RECONCILER_TORTURE_SEED which is the
first; a failed round names its seed, and with it the same edits meet the same faults again.
"""

import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from scripts.processes import wait_for
from tests.e2e.world import World, box, web
from tests.harness import faults
from tests.harness.faults import Fault, Predicate, matching
from tests.harness.proxy import FaultProxy

ROUNDS = int(os.environ.get("RECONCILER_TORTURE_ROUNDS", "4"))
FIRST = int(os.environ.get("RECONCILER_TORTURE_SEED", "1"))
STEPS = 12
LONGEST_STEP = 3
SHORT = {"RECONCILER_ENGINE_TIMEOUT": "2s", "RECONCILER_READ_TIMEOUT": "2s"}
STATES = {"running": {"running"}, "paused": {"paused"}, "stopped": {"created", "exited"}}
STATUS = {"running": "RUNNING", "paused": "PAUSED", "stopped": "STOPPED"}
KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "alice": web,
    "bob": box,
    "carol": web,
    "dave": box,
}

# Every fault fits every request; these make the telling ones likely.
REQUESTS: list[Predicate] = [
    matching(),
    lambda request: request.changes,
    lambda request: not request.changes,
    matching("GET", "/containers/json"),
    matching("GET", "/containers/[^/]+/json"),
    matching("POST", "/containers/create"),
    matching("POST", "/containers/[^/]+/(start|stop|rename|pause|unpause)"),
    matching("DELETE", ".*"),
]
FAULTS: list[Callable[[], Fault]] = [
    lambda: faults.delay(0.7),
    faults.drop,
    faults.cut,
    lambda: faults.answer(500),
    lambda: faults.answer(409),
    lambda: faults.answer(404),
    faults.garbage,
    faults.truncate,
    faults.hang,
    faults.hang_after,
]


class Round:
    """One world under fire; `story` is what was done to it."""

    def __init__(self, world: World, proxy: FaultProxy, seed: int) -> None:
        self.world, self.proxy = world, proxy
        self.random = random.Random(seed)
        self.story = [f"RECONCILER_TORTURE_SEED={seed}"]
        self.records: dict[str, dict[str, Any]] = {}
        self.met = 0

    def edit(self) -> None:
        """Change some of the records; the first stays, so that no edit is a mass deletion."""
        for name, kind in KINDS.items():
            match self.random.choice(["keep", "keep", "remove", "set", "set"]):
                case "remove" if name != "alice":
                    self.records.pop(name, None)
                case "set":
                    colour = self.random.choice(["red", "green", "blue"])
                    state = self.random.choice(list(STATES))
                    self.records[name] = kind(state, env={"COLOUR": colour})
        told = {n: f"{r['state']} {r['env']['COLOUR']}" for n, r in self.records.items()}
        self.story.append(f"declare {told}")
        self.world.declare(**self.records)

    def harm(self) -> None:
        """Let one thing go wrong, and wait until it has, or nothing met it."""
        way = self.random.choice([self.break_request] * 6 + [self.refuse, self.cut, self.crash])
        way()

    def break_request(self) -> None:
        which = self.random.randrange(len(REQUESTS))
        fault = self.random.choice(FAULTS)()
        times = self.random.choice([1, 1, 2, 5])
        self.story.append(f"{times} of requests {which}: {fault}")
        rule = self.proxy.fault(REQUESTS[which], fault, times)
        wait_for(lambda: rule.times == 0, LONGEST_STEP)
        self.met += rule.times != times

    def refuse(self) -> None:
        self.story.append("refuse connections")
        first, mark = len(self.proxy.requests), self.world.daemon.mark()
        self.proxy.refuse()
        wait_for(lambda: bool(self.world.daemon.events("engine.lost", since=mark)), LONGEST_STEP)
        self.proxy.accept()
        wait_for(lambda: len(self.proxy.requests) > first, LONGEST_STEP)

    def cut(self) -> None:
        self.story.append("cut the streams, and lose or repeat events")
        copies = self.random.choice([0, 2, 3])
        self.proxy.edit_events(lambda event: [event] * copies)
        self.proxy.cut_streams()

    def crash(self) -> None:
        self.story.append("kill -9 the daemon")
        self.world.daemon.kill9()
        self.world.daemon.start()

    def fix(self) -> None:
        self.proxy.clear()
        self.proxy.cut_streams()

    def settled(self) -> bool:
        """Whether all is as declared: on the engine, and in the daemon's eyes."""
        world, records = self.world, self.records
        if set(world.names()) != set(records):
            return False
        right = all(
            world.state(name) in STATES[record["state"]]
            and world.env(name).get("COLOUR") == record["env"]["COLOUR"]
            for name, record in records.items()
        )
        statuses = {name: STATUS[record["state"]] for name, record in records.items()}
        return right and world.statuses() == statuses


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(FIRST, FIRST + ROUNDS))
def test_after_all_faults_it_is_as_declared(
    proxied: World, proxy: FaultProxy, foreign: list[str], seed: int
) -> None:
    proxied.daemon.env.update(SHORT)
    one = Round(proxied, proxy, seed)
    one.records = {name: kind(env={"COLOUR": "red"}) for name, kind in KINDS.items()}
    proxied.start(**one.records)
    foreign.append(proxied.name("stranger"))
    stranger = proxied.docker.run(foreign[0], "sleep", "1000000")
    keys, ports = {name: proxied.key(name) for name in KINDS}, proxied.ports("alice")
    for name in KINDS:
        proxied.run_in(name, "echo data > /workspace/file")
    try:
        for _ in range(STEPS):
            one.edit()
            one.harm()
        one.fix()
        proxied.wait(one.settled)
        proxied.converge(*one.records)
    except AssertionError as error:
        story = "\n".join(one.story)
        raise AssertionError(f"{story}\n{error}\n{proxy.transcript()}") from error
    assert {name: proxied.key(name) for name in one.records}.items() <= keys.items()
    assert proxied.ports("alice") == ports
    assert proxied.volumes() == set(KINDS)
    for name in one.records:
        path = f"/containers/{proxied.name(name)}/archive?path=/workspace/file"
        assert b"data\n" in proxied.docker._request("GET", path)
    assert proxied.docker.inspect(stranger)["State"]["Status"] == "running"
    print(f"seed {seed}: {one.met} of {STEPS} steps broke a request, of {len(proxy.requests)}")
    assert "Traceback" not in "\n".join(proxied.daemon.raw)
