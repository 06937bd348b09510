"""The daemon behind a proxy that forbids parts of the engine's API."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import World
from tests.harness.daemon import Daemon
from tests.harness.faults import answer, part
from tests.harness.instance import Instance
from tests.harness.proxy import FaultProxy

BARE = {"spec": "bare"}
BOX = {"spec": "box"}


@contextmanager
def behind(instance: Instance, home: Path, *parts: str) -> Iterator[tuple[World, FaultProxy]]:
    with FaultProxy(instance.docker.host) as proxy:
        for name in parts:
            proxy.fault(part(name), answer(403, "Request forbidden by rule"), times=None)
        with Daemon(instance, home, host=proxy.host) as daemon:
            yield World(daemon), proxy


def doctor(world: World) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "reconciler", "doctor", "--json"],
        env=world.daemon.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return {finding["check"]: finding for finding in json.loads(done.stdout)}


def forbidden(world: World) -> set[str]:
    return {line["part"] for line in world.daemon.logs if line["event"] == "engine.forbidden"}


@pytest.mark.parametrize(
    "parts",
    [("EVENTS",), ("EXEC",), ("IMAGES",), ("INFO",), ("VERSION", "PING"), ("EVENTS", "INFO")],
    ids="+".join,
)
def test_sandboxes_run_without_optional_parts_of_the_api(
    instance: Instance, tmp_path: Path, parts: tuple[str, ...]
) -> None:
    with behind(instance, tmp_path, *parts) as (world, _):
        world.start(alice=BOX, bob=BARE)
        assert world.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}
        world.docker.kill(f"{world.instance.prefix}bob")
        world.wait(lambda: world.row("bob")["restarts"] == 1)
        world.converge("alice", "bob")
        reported = " ".join(world.ask("/v1/status")["engine"]["forbidden"])
        findings = doctor(world)
        for name in set(parts) - {"EXEC", "IMAGES", "PING"}:
            assert f"{name}=1" in reported
            world.wait(lambda name=name: name in forbidden(world))
        for name in set(parts) - {"PING"}:
            found = findings[f"engine API {name}"]
            assert found["verdict"] == "WARN"
            assert f"{name}=1" in found["fix"]


def test_without_volumes_only_workspaces_fail(instance: Instance, tmp_path: Path) -> None:
    with behind(instance, tmp_path, "VOLUMES") as (world, proxy):
        world.declare(alice=BOX, bob=BARE)
        world.daemon.start()
        world.wait_error("alice", "VOLUMES=1", "workspace")
        world.wait(lambda: world.statuses()["bob"] == "RUNNING")
        assert doctor(world)["engine API VOLUMES"]["verdict"] == "WARN"
        world.wait(lambda: forbidden(world) == {"VOLUMES"})
        proxy.clear()
        world.converge("alice", "bob")
        world.daemon.wait_event("engine.allowed")


def test_a_read_only_api_is_one_error_per_sandbox(instance: Instance, tmp_path: Path) -> None:
    with behind(instance, tmp_path, "POST") as (world, proxy):
        world.declare(alice=BOX, bob=BARE, carol=BARE)
        world.daemon.start()
        for name in ("alice", "bob", "carol"):
            world.wait_error(name, "POST=1")
        findings = doctor(world)
        assert findings["engine API POST"]["verdict"] == "FAIL"
        assert findings["engine API"]["found"].startswith("CONTAINERS ")
        world.wait(lambda: forbidden(world) == {"POST"})
        assert not [line for line in world.daemon.logs if line["event"] == "action.failed"]
        proxy.clear()
        world.converge("alice", "bob", "carol")


def test_without_containers_the_cause_is_reported(instance: Instance, tmp_path: Path) -> None:
    with behind(instance, tmp_path, "CONTAINERS") as (world, proxy):
        world.declare(bob=BARE)
        world.daemon.start()
        lost = world.daemon.wait_event("engine.lost")
        assert "CONTAINERS=1" in lost["error"]
        assert doctor(world)["engine API CONTAINERS"]["verdict"] == "FAIL"
        proxy.clear()
        world.converge("bob")
