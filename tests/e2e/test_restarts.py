"""The daemon, its database and the engine may end at any moment."""

import json
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.engine import PrivateEngine
from tests.e2e.world import World, box, get, web, world_of, world_on
from tests.harness.docker import Docker
from tests.harness.faults import matching
from tests.harness.proxy import FaultProxy

TEN = {f"s{number}": box() for number in range(10)}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["create", "start"])
def test_a_stop_while_converging_is_resumed(
    proxied: World, proxy: FaultProxy, number: signal.Signals, moment: str
) -> None:
    proxied.declare(**TEN)
    proxied.daemon.start()
    path = {"create": "/containers/create", "start": "/containers/.*/start"}[moment]
    changes = matching("POST", path)
    proxied.wait(lambda: len(proxy.seen(changes)) >= 3)
    proxied.daemon.send(number)
    proxied.daemon.wait_exit()
    proxied.daemon.start()
    proxied.converge(*TEN)
    assert proxied.names() == sorted(TEN)
    assert proxied.volumes() == set(TEN)
    assert {proxied.state(name) for name in TEN} == {"running"}


def test_a_stopped_daemon_leaves_sandboxes_running(world: World) -> None:
    world.start(alice=web(), bob=box("paused"))
    ids, url = world.ids(), world.row("alice")["exposed_urls"][0]
    assert world.daemon.terminate() == 0
    assert (world.state("alice"), world.state("bob")) == ("running", "paused")
    assert "A sandbox answers" in get(f"http://127.0.0.1:{url['port']}/")
    mark = world.daemon.mark()
    world.daemon.start()
    world.converge("alice", "bob")
    assert world.ids() == ids
    assert world.row("alice")["exposed_urls"][0] == url
    assert not world.daemon.events("sandbox.started", since=mark)


def test_a_second_daemon_on_one_state_directory_is_refused(world: World, tmp_path: Path) -> None:
    world.start(alice=box("stopped"))
    with world_of(world.instance, tmp_path) as second:
        assert second.daemon.start().wait_exit() != 0
        text = "\n".join(second.daemon.raw)
    assert str(world.daemon.process.pid) in text
    assert "Traceback" not in text
    assert world.statuses() == {"alice": "STOPPED"}


def test_a_lost_database_adopts_everything_declared(world: World) -> None:
    records = {"alice": web(), "bob": web("paused"), "carol": web("stopped")}
    world.start(**records)
    ids, kept = world.ids(), {name: (world.key(name), world.ports(name)) for name in records}
    world.daemon.kill9()
    for file in world.daemon.state_dir.glob("*.db*"):
        file.unlink()
    world.daemon.start()
    world.converge(*records)
    assert world.ids() == ids
    answer = json.loads(world.daemon.cli("status", "--json", "--show-secrets").stdout)
    for row in answer["sandboxes"]:
        key, ports = kept[row["name"]]
        assert row["session_api_key"] == key
        # A sandbox that is down shows no URL.
        shown = [] if row["status"] == "STOPPED" else list(ports.values())
        assert [url["port"] for url in row["exposed_urls"]] == shown
        assert world.ports(row["name"]) == ports


def test_a_corrupt_database_is_reported_and_changes_nothing(world: World) -> None:
    world.start(alice=box(), bob=box())
    ids = world.ids()
    assert world.daemon.terminate() == 0
    (file,) = world.daemon.state_dir.glob("*.db")
    file.write_bytes(b"no database" * 1000)
    world.declare(alice=box("stopped"))
    mark = world.daemon.mark()
    assert world.daemon.start().wait_exit() != 0
    failed = world.daemon.events("daemon.failed", since=mark)
    assert str(file) in failed[0]["error"]
    assert file.read_bytes() == b"no database" * 1000
    assert world.ids() == ids
    assert world.state("alice") == "running"


def test_the_database_is_intact_after_a_kill(world: World) -> None:
    world.declare(**TEN)
    world.daemon.start()
    world.daemon.wait_event("sandbox.created")
    world.daemon.kill9()
    (file,) = world.daemon.state_dir.glob("*.db")
    with sqlite3.connect(file) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def own(start_engine: Callable[..., PrivateEngine]) -> PrivateEngine:
    return start_engine()


@pytest.fixture
def on_own(own: PrivateEngine, tmp_path: Path) -> Iterator[World]:
    with world_on(Docker(own.host), tmp_path) as world:
        try:
            yield world
        finally:
            own.start()


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_an_engine_restart_under_the_daemon(on_own: World, own: PrivateEngine, end: str) -> None:
    on_own.start(alice=web(), bob=web("paused"), carol=web("stopped"))
    ids = on_own.ids()
    getattr(own, end)()
    on_own.daemon.wait_event("engine.lost")
    assert set(on_own.rows()) == {"alice", "bob", "carol"}
    own.start()
    on_own.wait_status(alice="RUNNING", bob="PAUSED", carol="STOPPED")
    on_own.converge("alice", "bob", "carol")
    assert on_own.ids() == ids
    assert (on_own.state("alice"), on_own.state("bob")) == ("running", "paused")


def test_a_daemon_starts_before_its_engine(on_own: World, own: PrivateEngine) -> None:
    own.terminate()
    on_own.declare(alice=box())
    on_own.daemon.start()
    on_own.daemon.wait_event("engine.lost")
    on_own.wait_status(alice="UNKNOWN")
    own.start()
    on_own.converge("alice")


def test_two_instances_on_one_engine_do_not_touch_each_other(
    world: World, engine: Docker, tmp_path: Path
) -> None:
    grace = {"RECONCILER_GC_GRACE": "0s"}
    world.daemon.env.update(grace)
    with world_on(engine, tmp_path / "other", **grace) as other:
        world.start(alice=web(), bob=box())
        other.start(alice=web(), carol=box())
        theirs, former = other.ids(), str(world.id("alice"))
        world.declare(alice=web(env={"COLOUR": "red"}))
        world.wait_replaced("alice", former)
        world.converge("alice")
        assert other.ids() == theirs
        other.converge("alice", "carol")
        assert other.row("alice")["restarts"] == 0
    assert world.names() == ["alice"]
