"""One daemon on the real engine: its desired file, its answers, and the engine's state."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from scripts.image import TEST_IMAGE
from tests.harness.daemon import Daemon, ask
from tests.harness.docker import DockerError, labels
from tests.harness.instance import Instance, instance_on
from tests.harness.waiting import PATIENCE

T = TypeVar("T")
KEY = "OH_SESSION_API_KEYS_0"

BOX: dict[str, Any] = {
    "image": TEST_IMAGE,
    "command": ["sleep", "1000000"],
    "workspace": {"path": "/workspace"},
    "stop_timeout": "1s",
    "restart": {"backoff": "100ms", "max_backoff": "2s"},
}
WEB: dict[str, Any] = {
    **BOX,
    "command": ["serve", "8000"],
    "ports": [{"name": "WEB", "container_port": 8000}],
    "health": {"path": "/health", "interval": "500ms", "startup_grace": "30s"},
}
SPECS = {"box": BOX, "web": WEB, "bare": {"image": TEST_IMAGE, "command": ["sleep", "1000000"]}}


def box(state: str = "running", **overrides: Any) -> dict[str, Any]:
    """A record of a sandbox that sleeps."""
    return {"spec": "box", "state": state, **overrides}


def web(state: str = "running", **overrides: Any) -> dict[str, Any]:
    """A record of a sandbox that has a port and a health check."""
    return {"spec": "web", "state": state, **overrides}


def document(**sandboxes: Any) -> str:
    """The text of a desired file; JSON is YAML, too."""
    return json.dumps({"version": 1, "specs": SPECS, "sandboxes": sandboxes}, indent=1)


class World:
    """A daemon, which need not run, and everything about its sandboxes by their names."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.instance = daemon.instance
        self.docker = daemon.instance.docker

    # What a user does

    def declare(self, **sandboxes: Any) -> None:
        self.daemon.write(document(**sandboxes))

    def start(self, **sandboxes: Any) -> None:
        """Start the daemon with these sandboxes, and wait until they are as desired."""
        self.declare(**sandboxes)
        self.daemon.start()
        self.converge(*sandboxes)

    def ask(self, path: str, method: str = "GET") -> Any:
        """Ask the daemon over its control socket; None where it does not answer."""
        answer = ask(self.daemon.runtime_dir, path, method)
        return None if answer is None else answer.json()

    def rows(self) -> dict[str, dict[str, Any]]:
        answer = self.ask("/v1/status")
        return {row["name"]: row for row in answer["sandboxes"]} if answer else {}

    def row(self, sandbox: str) -> dict[str, Any]:
        return self.rows()[sandbox]

    def statuses(self) -> dict[str, str]:
        return {name: row["status"] for name, row in self.rows().items()}

    # Waiting

    def wait(self, predicate: Callable[[], T], timeout: float = PATIENCE) -> T:
        """Poll until the predicate holds; fail at once when the daemon has died."""

        def holds() -> T:
            dead = self.daemon.process is not None and not self.daemon.running
            assert not dead, self.daemon.tail()
            return predicate()

        return self.daemon.wait_until(holds, timeout)

    def wait_status(self, **wanted: str) -> None:
        """Wait until these, and no others, have these statuses."""
        self.wait(lambda: self.statuses() == wanted)

    def wait_error(self, sandbox: str, *words: str) -> dict[str, Any]:
        """Wait for the status ERROR with these words in its reason."""

        def found_row() -> dict[str, Any] | None:
            row = self.rows().get(sandbox, {"status": "", "reason": ""})
            known = row["status"] == "ERROR" and all(word in row["reason"] for word in words)
            return row if known else None

        found = self.wait(found_row)
        assert found is not None
        return found

    def wait_reason(self, sandbox: str, *words: str) -> None:
        """Wait for these words in the reason of a sandbox that runs."""

        def holds() -> bool:
            row = self.rows().get(sandbox, {"status": "", "reason": ""})
            return row["status"] == "RUNNING" and all(word in row["reason"] for word in words)

        self.wait(holds)

    def converge(self, *sandboxes: str, timeout: float = PATIENCE) -> None:
        """Wait until these, and no others, exist and are as desired."""

        def converged() -> bool:
            if sandboxes and set(self.rows()) != set(sandboxes):
                return False
            answer = self.ask("/v1/convergence")
            return answer is not None and answer["converged"]

        self.wait(converged, timeout)

    def wait_replaced(self, sandbox: str, former: str) -> str:
        """Wait until another container bears the sandbox's name and all is as desired."""
        self.wait(lambda: self.id(sandbox) not in {None, former})
        self.converge()
        return str(self.id(sandbox))

    # What the engine says

    def name(self, sandbox: str) -> str:
        return self.instance.container(sandbox)

    def names(self) -> list[str]:
        """The sandboxes that have containers, by the containers' names."""
        prefix = self.instance.prefix
        return [name.removeprefix(prefix) for name in self.docker.names(self.instance.name)]

    def ids(self) -> dict[str, str]:
        rows = self.docker.containers(self.instance.name)
        return {row["Names"][0].lstrip("/"): row["Id"] for row in rows}

    def id(self, sandbox: str) -> str | None:
        return self.ids().get(self.name(sandbox))

    def state(self, sandbox: str) -> str | None:
        return self.docker.state(self.name(sandbox))

    def inspect(self, sandbox: str) -> dict[str, Any]:
        return self.docker.inspect(self.name(sandbox))

    def env(self, sandbox: str) -> dict[str, str]:
        return self.docker.env(self.name(sandbox))

    def key(self, sandbox: str) -> str:
        return self.env(sandbox)[KEY]

    def ports(self, sandbox: str) -> dict[int, int]:
        return self.docker.ports(self.name(sandbox))

    def run_in(self, sandbox: str, script: str, user: str = "") -> str:
        """Run a shell's script inside; it must end well."""
        code, output = self.docker.exec(self.name(sandbox), "sh", "-c", script, user=user)
        assert code == 0, output
        return output.strip()

    def run_between_restarts(self, sandbox: str, script: str) -> None:
        """Run a shell's script inside one that is restarted over and over, until it ended well."""

        def ran() -> bool:
            try:
                return self.docker.exec(self.name(sandbox), "sh", "-c", script)[0] == 0
            except DockerError:
                return False  # it did not run just then

        self.wait(ran)

    def volumes(self) -> set[str]:
        """The sandboxes that have workspaces."""
        prefix = self.instance.volume("")
        return {name.removeprefix(prefix) for name in self.docker.volumes(self.instance.name)}

    def add_container(self, name: str, *command: str, sandbox: str | None = None) -> str:
        """Create a container that nobody declared; it is ours where a sandbox is named."""
        marks = labels(self.instance.name, sandbox) if sandbox else {}
        return self.docker.create(name, *(command or ("sleep", "1000000")), labels=marks)


def get(url: str) -> str:
    """Return what a URL answers, asked without a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return str(answer.read().decode())


@contextmanager
def world_of(instance: Instance, home: Path, **env: str) -> Iterator[World]:
    """A second world beside the fixture's, stopped and removed afterwards."""
    with Daemon(instance, home, env=env) as daemon:
        yield World(daemon)


@contextmanager
def world_on(docker: Any, home: Path, **env: str) -> Iterator[World]:
    """A world with a new identity on an engine."""
    with instance_on(docker) as instance, world_of(instance, home, **env) as world:
        yield world
