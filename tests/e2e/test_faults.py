"""Random faults of the engine and its socket under random edits: the host converges afterwards.

RECONCILER_TORTURE_ROUNDS says how many rounds there are, and RECONCILER_TORTURE_SEED which is the
first; a failed round names its seed, and with it the same edits meet the same faults again.
"""

import os
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest

from scripts.processes import wait_for
from tests.e2e.world import World, box, web
from tests.harness import faults
from tests.harness.faults import EditEvent, Fault, Predicate, matching
from tests.harness.proxy import FaultProxy

ROUNDS = int(os.environ.get("RECONCILER_TORTURE_ROUNDS", "4"))
FIRST = int(os.environ.get("RECONCILER_TORTURE_SEED", "1"))
Event = dict[str, Any]
STEPS = 12
LONGEST_STEP = 3
# A creation can be done after its record was forgotten; what it leaves is garbage, and has to go.
SHORT = {
    "RECONCILER_ENGINE_TIMEOUT": "2s",
    "RECONCILER_READ_TIMEOUT": "2s",
    "RECONCILER_GC_GRACE": "5s",
}
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
FAULTS: dict[str, Callable[[], Fault]] = {
    "delay": lambda: faults.delay(0.7),
    "drop": faults.drop,
    "cut": faults.cut,
    "500": lambda: faults.answer(500),
    "409": lambda: faults.answer(409),
    "404": lambda: faults.answer(404),
    "garbage": faults.garbage,
    "truncate": faults.truncate,
    "hang": faults.hang,
    "hang after": faults.hang_after,
}
LIST = matching("GET", "/containers/json")
AFTERTHOUGHTS = matching("(POST|DELETE)", "/containers/[^/]+(/(start|stop|rename|pause|unpause))?")
LATE = 2.5  # longer than the daemon waits


def times(count: int) -> Callable[[Event], list[Event]]:
    return lambda event: [event] * count


def repeated_events() -> Callable[[Event], list[Event]]:
    """Let each event be followed by the last ones again, the newest first."""
    past: deque[Event] = deque(maxlen=8)

    def follow(event: Event) -> list[Event]:
        repeated = [event, *past]
        past.appendleft(event)
        return repeated

    return follow


EVENTS: dict[str, Callable[[], EditEvent]] = {
    "lost": lambda: times(0),
    "doubled": lambda: times(2),
    "tripled": lambda: times(3),
    "repeated": repeated_events,
}


class Round:
    """One world under fire; `story` is what was done to it."""

    def __init__(self, world: World, proxy: FaultProxy, seed: int) -> None:
        self.world, self.proxy = world, proxy
        self.random = random.Random(seed)
        self.history = [f"RECONCILER_TORTURE_SEED={seed}"]
        self.records: dict[str, dict[str, Any]] = {}
        self.met: Counter[str] = Counter()

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
        declared = {n: f"{r['state']} {r['env']['COLOUR']}" for n, r in self.records.items()}
        self.history.append(f"declare {declared}")
        self.world.declare(**self.records)

    def harm(self) -> None:
        """Let one thing go wrong, and wait until it has, or nothing met it."""
        ways = [self.refuse, self.cut, self.crash, self.hang_lists, self.wedge, self.come_late]
        self.random.choice([self.break_request] * 8 + ways)()

    def break_request(self) -> None:
        which = self.random.randrange(len(REQUESTS))
        name = self.random.choice(list(FAULTS))
        times = self.random.choice([1, 1, 2, 5])
        self.history.append(f"{times} of requests {which}: {name}")
        self.break_some(name, REQUESTS[which], FAULTS[name](), times)

    def break_some(self, name: str, which: Predicate, fault: Fault, times: int) -> None:
        rule = self.proxy.fault(which, fault, times)
        wait_for(lambda: rule.times == 0, LONGEST_STEP)
        self.met[name] += rule.times != times

    def hang_lists(self) -> None:
        self.history.append("hang every list, while all else answers")
        self.hang_all("hung lists", LIST, faults.hang())

    def wedge(self) -> None:
        self.history.append("hang every change, done or not, while all else answers")
        fault = self.random.choice([faults.hang, faults.hang_after])()
        self.hang_all("wedged", lambda request: request.changes, fault)

    def hang_all(self, name: str, which: Predicate, fault: Fault) -> None:
        before = len(self.proxy.seen(which))
        rule = self.proxy.fault(which, fault, times=None)
        wait_for(lambda: len(self.proxy.seen(which)) > before + 2, LONGEST_STEP)
        self.met[name] += len(self.proxy.seen(which)) > before
        rule.times = 0
        self.proxy.release()

    def come_late(self) -> None:
        self.history.append("let changes be done after the daemon gave them up")
        self.break_some("done late", AFTERTHOUGHTS, faults.delay(LATE), 2)

    def refuse(self) -> None:
        self.history.append("refuse connections")
        first, mark = len(self.proxy.requests), self.world.daemon.mark()
        self.proxy.refuse()
        wait_for(lambda: bool(self.world.daemon.events("engine.lost", since=mark)), LONGEST_STEP)
        self.met["refused"] += 1
        self.proxy.accept()
        wait_for(lambda: len(self.proxy.requests) > first, LONGEST_STEP)

    def cut(self) -> None:
        name, edit = self.random.choice(list(EVENTS.items()))
        self.history.append(f"cut the streams; from now on events are {name}")
        self.met[f"events {name}"] += 1
        self.proxy.edit_events(edit())
        self.proxy.cut_streams()

    def crash(self) -> None:
        self.history.append("kill -9 the daemon")
        self.met["kill -9"] += 1
        self.world.daemon.kill9()
        self.world.daemon.start()

    def fix(self) -> None:
        self.proxy.clear()
        # What comes late is put right, but only once it has come.
        self.world.wait(lambda: not self.proxy.late)
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
def test_random_faults_converge_to_the_declaration(
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
        history = "\n".join(one.history)
        raise AssertionError(f"{history}\n{error}\n{proxy.transcript()}") from error
    assert {name: proxied.key(name) for name in one.records}.items() <= keys.items()
    assert proxied.ports("alice") == ports
    assert proxied.volumes() == set(KINDS)
    for name in one.records:
        path = f"/containers/{proxied.name(name)}/archive?path=/workspace/file"
        assert b"data\n" in proxied.docker._request("GET", path)
    assert proxied.docker.inspect(stranger)["State"]["Status"] == "running"
    print(f"seed {seed}: of {len(proxy.requests)} requests: {dict(+one.met)}")
    assert "Traceback" not in "\n".join(proxied.daemon.raw)
