"""A removed record is deleted from every state, with missing dependencies and hanging steps."""

import shutil
from pathlib import Path

import pytest

from scripts.image import TEST_IMAGE
from tests.e2e.world import World, box
from tests.harness import faults
from tests.harness.faults import matching
from tests.harness.proxy import FaultProxy

BRIEF = {"workspace": {"path": "/workspace", "retain": 0}}
CRASHING = {"command": ["sh", "-c", "echo out of luck; exit 7"], "init": False}


def empty(world: World) -> bool:
    return not world.ids() and not world.docker.volumes(world.instance.name)


def test_deletion_from_every_state(world: World) -> None:
    names = ("running", "paused", "created", "exited", "crashing")
    world.start(
        running=box(**BRIEF),
        paused=box("paused", **BRIEF),
        created=box("stopped", **BRIEF),
        exited=box(**BRIEF),
    )
    world.declare(
        running=box(**BRIEF),
        paused=box("paused", **BRIEF),
        created=box("stopped", **BRIEF),
        exited=box("stopped", **BRIEF),
        crashing=box(**BRIEF, **CRASHING),
    )
    world.wait(lambda: world.statuses().get("exited") == "STOPPED")
    world.daemon.wait_event("sandbox.died", sandbox="crashing")
    assert set(world.names()) == set(names)
    world.declare()
    assert world.daemon.cli("apply", "--allow-mass-delete").returncode == 0
    world.wait(lambda: empty(world))


def test_deletion_without_image_and_mounts(world: World, tmp_path: Path) -> None:
    image, network = "reconciler-test-gone:latest", world.instance.container("net")
    world.docker.tag(TEST_IMAGE, *image.split(":"))
    world.docker.create_network(network)
    (tmp_path / "source").mkdir()
    mount = {"host_path": str(tmp_path / "source"), "container_path": "/source"}
    world.start(
        alice=box(image=image, network={"mode": network}, mounts=[mount], **BRIEF), bob=box()
    )
    world.daemon.kill9()
    world.docker.kill(world.name("alice"))
    world.docker.disconnect(network, world.name("alice"))
    world.docker.rm_network(network)
    world.docker.rm_image(image)
    shutil.rmtree(tmp_path / "source")
    world.daemon.start()
    world.wait_error("alice")
    world.declare(bob=box())
    world.converge("bob")
    assert world.names() == ["bob"]


@pytest.mark.parametrize(
    ("state", "call"),
    [("running", "/containers/[^/]+/start"), ("stopped", "/containers/[^/]+/stop")],
)
def test_deletion_while_a_step_hangs(
    proxied: World, proxy: FaultProxy, state: str, call: str
) -> None:
    proxied.daemon.env["RECONCILER_ENGINE_TIMEOUT"] = "3s"
    before = {"alice": box(**BRIEF)} if state == "stopped" else {}
    proxied.start(bob=box(), **before)
    last = proxy.requests[-1].number
    proxy.fault(matching("POST", call), faults.hang(), times=None)
    proxied.declare(bob=box(), alice=box(state, **BRIEF))
    proxy.wait_request(matching("POST", call), after=last)
    proxied.declare(bob=box())
    proxied.converge("bob")
    assert proxied.names() == ["bob"]


def test_deletion_while_a_pull_hangs(proxied: World, proxy: FaultProxy) -> None:
    proxied.start(bob=box())
    proxy.fault(matching("POST", "/images/create"), faults.hang(), times=None)
    proxied.declare(bob=box(), alice=box(image="localhost:1/slow:latest"))
    pull = proxy.wait_request(matching("POST", "/images/create"))
    proxied.declare(bob=box())
    proxied.converge("bob")
    assert pull.status is None
    assert proxied.names() == ["bob"]


def test_the_last_exit_is_shown_after_the_deletion(world: World) -> None:
    world.start(bob=box())
    world.declare(bob=box(), alice=box(**CRASHING))
    world.daemon.wait_event("sandbox.died", sandbox="alice")
    world.declare(bob=box())
    world.converge("bob")
    answer = world.daemon.cli("status", "alice")
    assert answer.returncode == 1
    for words in (
        "removed from the desired file",
        "exit code 7",
        "out of luck",
        "reconciler events alice",
    ):
        assert words in answer.stderr
    assert world.daemon.cli("status", "nobody").stderr == "reconciler: no sandbox is named nobody\n"
    history = [line.split()[2] for line in world.daemon.cli("events", "alice").stdout.splitlines()]
    assert history[:4] == ["record.added", "volume.created", "sandbox.created", "sandbox.started"]
    assert {"sandbox.died", "record.deleted", "sandbox.removed"} <= set(history)
