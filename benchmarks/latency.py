"""Measure the time from a hint to the request that reaches the engine."""

import itertools
import time
from pathlib import Path

from benchmarks import figures
from benchmarks.ours import SPEC
from tests.harness.daemon import Daemon
from tests.harness.faults import Request
from tests.harness.instance import Instance
from tests.harness.proxy import FaultProxy

WAIT_SECONDS = 30


def measure(instance: Instance, home: Path, samples: int) -> None:
    """Print both latencies, measured at a proxy on the engine's socket."""
    with FaultProxy(instance.docker.host) as proxy, Daemon(instance, home, host=proxy.host) as own:
        _save(own, "running")
        own.start().wait_event("sandbox.started", "one")
        print("\nlatency, at a proxy on the engine's socket")
        states = itertools.islice(itertools.cycle(["paused", "running"]), samples)
        edits = [_edit(own, proxy, state) for state in states]
        figures.distribution("saved edit to first request", edits)
        _save(own, "running")
        own.wait_until(lambda: instance.docker.state(instance.container("one")) == "running")
        deaths = [_kill(own, proxy, instance) for _ in range(samples)]
        figures.distribution("killed container to start request", deaths)


def _save(daemon: Daemon, state: str) -> None:
    daemon.write(SPEC + f"sandboxes:\n  one: {{spec: web, state: {state}}}\n")


def _edit(daemon: Daemon, proxy: FaultProxy, state: str) -> float:
    verb = "pause" if state == "paused" else "unpause"
    after = proxy.requests[-1].number
    began = time.monotonic()
    _save(daemon, state)
    arrived = proxy.wait_request(_ends_with(f"/{verb}"), timeout=WAIT_SECONDS, after=after)
    daemon.wait_until(lambda: arrived.status)
    return arrived.time - began


def _kill(daemon: Daemon, proxy: FaultProxy, instance: Instance) -> float:
    name = instance.container("one")
    daemon.wait_until(lambda: instance.docker.state(name) == "running")
    after = proxy.requests[-1].number
    began = time.monotonic()
    instance.docker.kill(name)
    return proxy.wait_request(_ends_with("/start"), WAIT_SECONDS, after).time - began


def _ends_with(end: str):  # noqa: ANN202 - a predicate
    def matches(request: Request) -> bool:
        return request.path.endswith(end)

    return matches
