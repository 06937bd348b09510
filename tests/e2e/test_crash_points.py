"""The daemon dies at every request that changes something, before and after the engine does it.

Each leg of a course takes the daemon some requests. It is done once undisturbed to count them, then
once more for each of them and each side of it.
"""

import threading
from dataclasses import dataclass, field
from typing import Literal

import pytest

from tests.e2e.scenario import (
    PATIENT,
    Leg,
    Scenario,
    alice,
    crash,
    garbage,
    removal,
    repaint,
    spoil,
    taken_port,
    to,
)
from tests.e2e.world import World
from tests.harness import faults
from tests.harness.faults import Request
from tests.harness.proxy import FaultProxy

Side = Literal["before", "after"]

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


@dataclass
class AtRequest:
    """The daemon dies at that change from now, on that side of it."""

    scenario: Scenario = field(repr=False)
    number: int
    side: Side
    certain = True

    def __post_init__(self) -> None:
        self._seen: list[int] = []
        self._died = threading.Event()

    def arm(self) -> None:
        fault = faults.drop() if self.side == "before" else faults.cut()
        proxy = self.scenario.proxy
        proxy.on_request(self._count)
        proxy.on_response(lambda request: self._look("after", request))
        proxy.fault(self._is_it, fault)

    def came(self) -> bool:
        return self._died.is_set()

    def disarm(self) -> None:
        self.scenario.proxy.clear()

    def _count(self, request: Request) -> None:
        if request.changes:
            self._seen.append(request.number)
            self._look("before", request)

    def _look(self, side: Side, request: Request) -> None:
        if side == self.side and self._is_it(request):
            self.scenario.world.daemon.kill9()
            self._died.set()

    def _is_it(self, request: Request) -> bool:
        return self._seen[self.number :] == [request.number]


def run(scenario: Scenario, leg: Leg) -> int:
    """Run the leg undisturbed, then from every point; return how many there were."""
    scenario.begin(leg)
    changes = len(scenario.attempt(leg))
    sides: tuple[Side, Side] = ("before", "after")
    for number in range(changes):
        for side in sides:
            scenario.attempt(leg, AtRequest(scenario, number, side))
    return 2 * changes


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_request_is_repaired(
    proxied: World, proxy: FaultProxy, foreign: list[str], name: str
) -> None:
    least, legs = SCENARIOS[name]
    scenario = Scenario(proxied, proxy, foreign)
    points = sum(run(scenario, leg) for leg in legs)
    print(f"{name}: {points} crash points")
    assert points >= least
