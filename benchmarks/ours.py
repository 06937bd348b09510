"""Measure the daemon from the saved edit until every sandbox runs."""

import time
from pathlib import Path

from benchmarks.bare import remove_all
from scripts.image import TEST_IMAGE
from tests.harness.daemon import Daemon
from tests.harness.instance import Instance

SPEC = f"""\
version: 1
specs:
  web:
    image: {TEST_IMAGE}
    command: [serve, "8000", "8001"]
    ports: [{{name: AGENT_SERVER, container_port: 8000}}, {{name: VSCODE, container_port: 8001}}]
    restart: {{reset_after: 0}}
"""
POLL_SECONDS = 0.01


def converge(instance: Instance, home: Path, count: int) -> float:
    """Return the seconds from the edit until all run."""
    with Daemon(instance, home) as daemon:
        daemon.write(SPEC + "sandboxes: {}\n")
        daemon.start().wait_event("daemon.ready")
        began = time.monotonic()
        daemon.write(SPEC + f"sandboxes:\n  many: {{spec: web, replicas: {count}}}\n")
        # Until the last start was answered, as in the bare loop, without other requests.
        while len(daemon.events("sandbox.started")) < count:
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        assert _running(instance) == count
        daemon.kill9()
    remove_all(instance)
    return seconds


def _running(instance: Instance) -> int:
    return len(instance.docker.containers(instance.name, status=["running"]))
