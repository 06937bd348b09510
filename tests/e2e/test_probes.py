"""Probes on a real engine: behind its proxy, through a filter, and from another network."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import World, box, web
from tests.harness import faults
from tests.harness.faults import matching
from tests.harness.proxy import FaultProxy
from tests.harness.registry import CHECKED_FILE, make_checked_image

BRISK: dict[str, Any] = {
    "startup_grace": "0s",
    "interval": "200ms",
    "timeout": "10s",
    "failures": 2,
}
TCP = {"kind": "tcp", **BRISK}
CALM = {"backoff": "5m", "max_backoff": "5m"}


def unknown(world: World, sandbox: str) -> str:
    """The cause in the status of a sandbox whose health is unknown; empty where it is known."""
    row = world.rows().get(sandbox, {"reason": ""})
    before, _, cause = row["reason"].partition("health unknown: ")
    return cause if not before else ""


def findings(world: World) -> dict[str, dict[str, str]]:
    """What ``doctor`` found, by check."""
    done = world.daemon.cli("doctor", "--json")
    return {finding["check"]: finding for finding in json.loads(done.stdout)}


@pytest.mark.parametrize(
    "command",
    [
        ["sleep", "1000000"],
        ["httpd", "-f", "-p", "127.0.0.1:8000"],
        ["sh", "-c", "nc -ll -p 8001 -e cat"],
    ],
    ids=["nothing listens", "only inside", "another port"],
)
def test_tcp_fails_where_nothing_listens(world: World, command: list[str]) -> None:
    world.declare(deaf=web(command=command, health=TCP, restart=CALM))
    world.daemon.start()
    logged = world.daemon.wait_event("sandbox.unhealthy", "deaf")
    assert logged["cause"].startswith("the connection is closed at once")
    assert not world.daemon.events("sandbox.healthy")


@pytest.mark.parametrize(
    "command",
    [
        ["nc", "-ll", "-p", "8000", "-e", "cat"],
        ["nc", "-ll", "-p", "8000", "-e", "echo", "220 ready"],
        ["serve", "8000"],
    ],
    ids=["silent", "speaks first", "http"],
)
def test_tcp_passes_where_a_server_listens(world: World, command: list[str]) -> None:
    world.start(alice=web(command=command, health=TCP))
    world.daemon.wait_event("sandbox.healthy", "alice")
    seconds = world.daemon.mark()
    world.wait(lambda: world.row("alice")["status"] == "RUNNING")
    assert not world.daemon.events("sandbox.unhealthy", since=seconds)


def test_https_to_a_plain_http_server_is_unhealthy(world: World) -> None:
    probe = {**BRISK, "scheme": "https", "path": "/health"}
    world.declare(alice=web(health=probe, restart=CALM))
    world.daemon.start()
    world.wait_error("alice", "unhealthy: TLS failed: WRONG_VERSION_NUMBER")


def test_a_forbidden_exec_probe_is_unknown(proxied: World, proxy: FaultProxy) -> None:
    world = proxied
    probe = {"kind": "exec", "command": ["true"], **BRISK}
    rule = proxy.fault(matching("POST", "/containers/[^/]+/exec"), faults.answer(403), None)
    world.declare(alice=box(health=probe), bob=box(health=probe))
    world.daemon.start()
    for sandbox in ("alice", "bob"):
        world.wait(lambda sandbox=sandbox: "EXEC=1" in unknown(world, sandbox))
        assert world.row(sandbox)["status"] == "STARTING"
    (said,) = world.daemon.events("probe.unknown")
    assert "forbidden" in said["cause"]
    examined = findings(world)
    assert "cannot be probed: 2" in examined["probes"]["found"]
    assert "EXEC=1" in examined["probes"]["fix"]
    assert examined["exec probes"]["verdict"] == "FAIL"
    rule.times = 0
    world.converge("alice", "bob")
    assert findings(world)["exec probes"]["verdict"] == "OK"
    assert world.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}
    rule.times = None
    world.wait(lambda: unknown(world, "alice"))
    assert world.row("alice")["status"] == "RUNNING"
    assert [row["restarts"] for row in world.rows().values()] == [0, 0]


_ELSEWHERE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from scripts import bridge
if sys.argv[2] == "up":
    bridge.set_up("lo")
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize("kind", ["http", "tcp"])
@pytest.mark.parametrize(
    ("loopback", "words"), [("up", "--network host"), ("down", "this host has no route to")]
)
def test_health_is_unknown_in_another_network_namespace(
    world: World, kind: str, loopback: str, words: str
) -> None:
    root = str(Path(__file__).parent.parent.parent)
    world.daemon.prefix = (
        *("unshare", "--net", sys.executable, "-c", _ELSEWHERE),
        *(root, loopback),
    )
    world.declare(alice=web(health={**BRISK, "kind": kind}))
    world.daemon.start()
    world.wait(lambda: words in unknown(world, "alice"))
    assert world.row("alice")["status"] == "STARTING"
    assert world.row("alice")["restarts"] == 0
    assert len(world.daemon.events("probe.unknown")) == 1
    examined = findings(world)
    assert "cannot be probed: 1" in examined["probes"]["found"]
    assert examined["published ports"]["verdict"] == "FAIL"
    assert "--network host" in examined["published ports"]["fix"]
    assert not world.daemon.events("sandbox.unhealthy")


_CHOOSY = """
while read -r line; do
  case "$line" in Host:\\ localhost*) good=1;; X-Probe:\\ yes*) good=1$good;; esac
  [ ${#line} -le 1 ] && break
done
[ "$good" = 11 ] && echo "HTTP/1.1 200 OK" || echo "HTTP/1.1 421 Misdirected Request"
"""


def test_a_probe_sends_host_and_headers(world: World) -> None:
    choosy = ["nc", "-ll", "-p", "8000", "-e", "sh", "-c", _CHOOSY]
    named = {**BRISK, "host": "localhost", "headers": {"X-Probe": "yes"}}
    world.declare(
        plain=web(command=choosy, health=BRISK, restart=CALM),
        named=web(command=choosy, health=named),
    )
    world.daemon.start()
    world.wait_error("plain", "unhealthy: HTTP 421 on /health")
    world.wait(lambda: world.row("named")["status"] == "RUNNING")


def test_the_host_name_survives_a_replacement(world: World) -> None:
    world.start(alice=box(), bob=box(hostname="licensed.example"))
    former = str(world.id("alice"))
    for edit in ({}, {"env": {"A": "b"}}):
        world.declare(alice=box(**edit), bob=box(hostname="licensed.example", **edit))
        if edit:
            world.wait_replaced("alice", former)
        assert world.run_in("alice", "hostname") == "alice"
        assert world.run_in("bob", "hostname") == "licensed.example"


@pytest.fixture
def checked_image(world: World) -> Iterator[str]:
    """The test image with a HEALTHCHECK that looks for a file."""
    repository = f"{world.instance.prefix}checked"
    make_checked_image(world.docker, repository)
    yield f"{repository}:latest"
    world.daemon.close()
    world.docker.purge(world.instance.name)
    world.docker.rm_image(f"{repository}:latest")


def test_the_image_healthcheck_is_a_probe(world: World, checked_image: str) -> None:
    probe = {**BRISK, "kind": "docker"}
    command = ["sh", "-c", f"touch {CHECKED_FILE}; sleep 1000000"]
    record = box(image=checked_image, command=command, health=probe)
    world.start(alice=record)
    world.daemon.wait_event("sandbox.healthy", "alice")
    # The engine calls a check unhealthy as soon as its container is paused.
    mark, started = world.daemon.mark(), world.inspect("alice")["State"]["StartedAt"]
    world.declare(alice={**record, "state": "paused"})
    world.wait_status(alice="PAUSED")
    world.declare(alice=record)
    world.wait_status(alice="RUNNING")
    assert world.inspect("alice")["State"]["StartedAt"] == started
    assert not world.daemon.events("sandbox.unhealthy", since=mark)
    world.run_in("alice", f"rm {CHECKED_FILE}")
    world.daemon.wait_event("sandbox.unhealthy", "alice")
    world.wait(lambda: world.row("alice")["restarts"] >= 1)


def test_an_unused_healthcheck_is_reported(world: World, checked_image: str) -> None:
    world.start(alice=box(image=checked_image), off=box(image=checked_image, healthcheck="none"))
    world.daemon.wait_event("sandbox.check_unheeded", "alice")
    row = world.row("alice")
    assert (row["status"], row["restarts"]) == ("RUNNING", 0)
    assert "HEALTHCHECK fails" in row["reason"]
    assert world.inspect("off")["State"].get("Health") in (None, {"Status": "none", "Log": None})
    assert world.row("off")["reason"] == ""
