"""`docker compose up` of the same containers, if it is installed."""

import json
import os
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

from benchmarks.bare import remove_all
from scripts.image import TEST_IMAGE
from tests.harness.instance import Instance


@cache
def command() -> tuple[str, ...]:
    """Return the command; empty if it is not installed."""
    for words in (("docker", "compose"), ("docker-compose",)):
        program = shutil.which(words[0])
        if program is None:
            continue
        if subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0:
            return words
    return ()


def converge(instance: Instance, home: Path, count: int) -> float:
    """Return the seconds that `up --detach` takes."""
    file = home / "compose.json"
    services = {f"s{number}": _service(instance, number) for number in range(count)}
    file.write_text(json.dumps({"name": instance.name, "services": services}))
    began = time.monotonic()
    subprocess.run(
        [*command(), "-f", str(file), "-p", instance.name, "up", "--detach"],
        env={**os.environ, "DOCKER_HOST": instance.docker.host},
        capture_output=True,
        check=True,
    )
    seconds = time.monotonic() - began
    remove_all(instance)
    return seconds


def _service(instance: Instance, number: int) -> dict[str, object]:
    first = instance.ports[2 * number]
    return {
        "image": TEST_IMAGE,
        "command": ["serve", "8000", "8001"],
        "init": True,
        "labels": {"io.sandbox-reconciler.instance": instance.name},
        "ports": [f"127.0.0.1:{first}:8000", f"127.0.0.1:{first + 1}:8001"],
    }
