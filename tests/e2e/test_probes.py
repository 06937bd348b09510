"""Probes on a real engine: behind its proxy, through a filter, and from another network."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import World, box, web
from tests.harness import faults
from tests.harness.faults import matching
from tests.harness.proxy import FaultProxy

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
    before, _, cause = row["reason"].partition("its health is unknown: ")
    return cause if not before else ""


@pytest.mark.parametrize(
    "command",
    [
        ["sleep", "1000000"],
        ["httpd", "-f", "-p", "127.0.0.1:8000"],
        ["sh", "-c", "nc -ll -p 8001 -e cat"],
    ],
    ids=["nothing listens", "only inside", "another port"],
)
def test_tcp_is_never_good_where_nothing_listens(world: World, command: list[str]) -> None:
    world.declare(deaf=web(command=command, health=TCP, restart=CALM))
    world.daemon.start()
    told = world.daemon.wait_event("sandbox.unhealthy", "deaf")
    assert told["cause"].startswith("the connection is closed at once")
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
def test_tcp_is_good_where_something_listens(world: World, command: list[str]) -> None:
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
    rule.times = 0
    world.converge("alice", "bob")
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
def test_in_another_network_than_the_engines_health_is_unknown(
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
    assert not world.daemon.events("sandbox.unhealthy")
