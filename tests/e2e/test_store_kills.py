"""The daemon kills itself between two writes of its store, at each of them in turn.

The short form does so before each commit of some scenarios; between two commits the next daemon can
tell no two points apart. With RECONCILER_TORTURE_ROUNDS set it is all scenarios, both sides of each
commit, and each statement that writes.
"""

import json
import os
import secrets
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from tests.e2e.ledger_check import is_written
from tests.e2e.scenario import Leg, Scenario, alice, crash, repaint, to
from tests.e2e.world import World, box, web
from tests.harness import dying
from tests.harness.dying import Order
from tests.harness.faults import Request
from tests.harness.proxy import FaultProxy

LONG = "RECONCILER_TORTURE_ROUNDS" in os.environ
# (statements, side): what is counted, and where the daemon dies of it.
COMMITS = [(dying.COMMITS, "before")]
WAYS = [*COMMITS, (dying.COMMITS, "after"), (dying.WRITES, "before")] if LONG else COMMITS
ANEW = dying.WRITES if LONG else dying.COMMITS

# The points that each scenario has at least, so that none is lost unnoticed; in the short form.
SCENARIOS: dict[str, tuple[int, Leg]] = {
    "replace": (6, Leg(alice(), repaint(), chained=True)),
    "delete with volume": (4, Leg(alice(), to(None))),
    "restart after a crash": (2, Leg(alice(), to(alice()), crash)),
}
if LONG:
    SCENARIOS |= {
        "create": (4, Leg(None, to(alice()))),
        "pause": (2, Leg(alice(), to(alice("paused")))),
    }


@dataclass
class AtWrite:
    """The daemon dies at that write from now, where it comes to so many."""

    world: World = field(repr=False)
    statements: str
    side: str
    number: int
    certain = False

    @property
    def file(self) -> Path:
        return Path(self.world.daemon.env[dying.VARIABLE])

    def arm(self) -> None:
        Order(self.statements, self.number, self.side, secrets.token_hex(4)).write(self.file)

    def came(self) -> bool:
        return not self.world.daemon.running

    def disarm(self) -> None:
        self.file.unlink()


def write_each_step(scenario: Scenario) -> None:
    """Hold each change back until what came before it is on disk, however slow that is.

    Else some steps would share a commit, and there would be fewer points.
    """
    world = scenario.world

    def hold(request: Request) -> None:
        if request.changes:
            world.daemon.wait_until(lambda: not world.daemon.running or is_written(world))

    scenario.proxy.on_request(hold)


def run(scenario: Scenario, leg: Leg) -> int:
    """Run the leg undisturbed, then from every point; return how many there were."""
    write_each_step(scenario)
    scenario.begin(leg)
    scenario.attempt(leg)
    return sum(run_way(scenario, leg, *way) for way in WAYS)


def run_way(scenario: Scenario, leg: Leg, statements: str, side: str) -> int:
    """Die at the first such write, at the second, and so on, until there are no more."""
    for number in count():
        deaths = scenario.deaths
        scenario.attempt(leg, AtWrite(scenario.world, statements, side, number))
        if scenario.deaths == deaths:
            return number
    raise AssertionError


@pytest.fixture
def mortal(proxied: World, tmp_path: Path) -> World:
    """A world whose daemon dies where `AtWrite` says so."""
    proxied.daemon.module = "tests.harness.dying"
    proxied.daemon.env[dying.VARIABLE] = str(tmp_path / "death")
    return proxied


@pytest.mark.timeout(1200 if LONG else 400)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_between_any_two_writes_is_repaired(
    mortal: World, proxy: FaultProxy, foreign: list[str], name: str
) -> None:
    least, leg = SCENARIOS[name]
    points = run(Scenario(mortal, proxy, foreign), leg)
    print(f"{name}: {points} points between two writes")
    assert points >= least


@pytest.mark.timeout(400)
def test_a_kill_while_recreating_the_database_is_repaired(mortal: World) -> None:
    daemon, records = mortal.daemon, {"alice": web("paused"), "bob": box("stopped")}
    mortal.start(**records)
    ids, known = mortal.ids(), identities(mortal)
    daemon.kill9()
    points = 0
    for number in count():
        for file in daemon.state_dir.glob("*.db*"):
            file.unlink()
        death = AtWrite(mortal, ANEW, "before", number)
        death.arm()
        daemon.start()
        daemon.wait_until(lambda: not daemon.running or is_converged(mortal))
        died = death.came()
        death.disarm()
        if not died:
            break
        daemon.wait_exit()
        daemon.start()
        mortal.converge(*records)
        points += 1
        assert mortal.ids() == ids, death
        assert identities(mortal) == known, death
        daemon.kill9()
    print(f"database lost: {points} points between two writes")
    assert points >= 2


def is_converged(world: World) -> bool:
    """Whether all is as desired, and known on disk to be so."""
    answer = world.ask("/v1/convergence")
    done = answer is not None and answer["converged"] and len(world.rows()) > 0
    return done and is_written(world)


def identities(world: World) -> dict[str, tuple[str, list[int]]]:
    """The session key and the ports of each sandbox, as `status` shows them."""
    rows = json.loads(world.daemon.cli("status", "--json", "--show-secrets").stdout)["sandboxes"]
    return {
        row["name"]: (row["session_api_key"], [url["port"] for url in row["exposed_urls"]])
        for row in rows
    }
