"""Measure both sides of each comparison on one engine, in one run (``make bench``).

1. Seconds until N sandboxes with two ports each run: a bare loop over the client, which creates and
   starts them all at once and stores nothing (the engine's limit), against the daemon, from
   the saved edit; and `docker compose up`, where it is installed.
2. From a saved edit to the first request that reaches the engine.
3. From a container's death to the request that starts it again.
4. The CPU time of one probe, against a timer alone and against httpx.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from benchmarks import bare, compose, figures, latency, ours, probes
from tests.harness import engines
from tests.harness.instance import Instance, instance_on


def main() -> None:
    """Run all measurements and print the results."""
    options = _options()
    probes.measure(options.probes, max(options.rounds, 5))
    engines.begin_session()
    try:
        docker = engines.shared_engine()
        with instance_on(docker) as instance, tempfile.TemporaryDirectory() as home:
            _throughput(instance, Path(home), options.sandboxes, options.rounds)
        with instance_on(docker) as instance, tempfile.TemporaryDirectory() as home:
            latency.measure(instance, Path(home), options.samples)
    finally:
        engines.end_session()


def _throughput(instance: Instance, home: Path, sandboxes: int, rounds: int) -> None:
    seconds: dict[str, list[float]] = {"bare loop": [], "reconciler": []}
    for _ in range(rounds):
        # In turns, so that both sides run under the same conditions.
        seconds["bare loop"].append(asyncio.run(bare.converge(instance, sandboxes)))
        seconds["reconciler"].append(ours.converge(instance, home, sandboxes))
        if compose.command():
            seconds.setdefault("docker compose", []).append(
                compose.converge(instance, home, sandboxes)
            )
    print(f"\n{sandboxes} sandboxes with two ports each, {rounds} rounds")
    figures.compare(seconds, baseline="bare loop", unit=sandboxes)
    if not compose.command():
        print("docker compose: not installed here, so not compared")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sandboxes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--probes", type=int, default=1000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
