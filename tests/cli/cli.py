"""Run the command line as users do: as a process whose output is captured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
COMMANDS = (
    "adopt apply check doctor events export gc logs plan reload run schema status".split()  # noqa: SIM905
)
GOOD = """\
version: 1
specs:
  box: {image: "reconciler-test:latest", command: [sleep, "1000"]}
sandboxes:
  alice: {spec: box}
  pool: {spec: box, replicas: 2}
"""


@dataclass(frozen=True)
class Cli:
    """Run commands that share a home, which has ``desired.yaml`` and ``state``."""

    home: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def desired(self) -> Path:
        return self.home / "desired.yaml"

    @property
    def environment(self) -> dict[str, str]:
        foreign = ("RECONCILER_", "DOCKER_", "STATE_DIRECTORY")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        return {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "RECONCILER_STATE_DIR": str(self.home / "state"),
            "RECONCILER_DESIRED": str(self.desired),
            "DOCKER_HOST": f"unix://{self.home}/nobody.sock",
            **self.env,
        }

    def __call__(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; a traceback fails the test."""
        done = subprocess.run(
            [sys.executable, "-m", "reconciler", *map(str, arguments)],
            cwd=self.home,
            env={**self.environment, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert "internal error" not in done.stderr, done.stderr
        return done

    def begin(self, *arguments: object) -> subprocess.Popen[str]:
        """Start a command that does not end by itself."""
        return subprocess.Popen(
            [sys.executable, "-m", "reconciler", *map(str, arguments)],
            cwd=self.home,
            env={**self.environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
