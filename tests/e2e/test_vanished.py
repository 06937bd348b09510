"""Dependencies of a sandbox vanish on a real engine, and return."""

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from scripts.image import TEST_IMAGE
from tests.e2e.world import World, box
from tests.harness.docker import DockerError
from tests.harness.faults import Fault, Request, matching
from tests.harness.proxy import FaultProxy

IPTABLES = (
    "driver failed programming external connectivity on endpoint {name} ({endpoint}):  (iptables "
    "failed: iptables --wait -t nat -A DOCKER -p tcp -d 127.0.0.1 --dport 20000 -j DNAT "
    "--to-destination 172.17.0.2:8000 ! -i docker0: iptables: No chain/target/match by that "
    "name.\\n (exit status 1))"
)


@pytest.fixture
def network(world: World) -> Iterator[str]:
    """A name for a network that the test makes; the network is removed in the end."""
    name = f"{world.instance.prefix}agents"
    yield name
    world.daemon.close()  # else it makes again what is purged
    world.docker.purge(world.instance.name)
    with suppress(DockerError):
        world.docker.rm_network(name)


def work_in(world: World, **record: Any) -> tuple[str, str]:
    """Start alice with a file in her workspace; return her container and her key."""
    world.start(alice=box(**record))
    world.run_in("alice", "echo work > /workspace/file")
    return str(world.id("alice")), world.key("alice")


def has_work(world: World) -> bool:
    return world.run_in("alice", "cat /workspace/file") == "work"


def test_a_recreated_network(world: World, network: str) -> None:
    world.docker.create_network(network)
    record = {"network": {"mode": network}}
    former, key = work_in(world, **record)
    world.declare(alice=box("stopped", **record))
    world.wait_status(alice="STOPPED")
    world.docker.rm_network(network)
    world.docker.create_network(network)
    world.declare(alice=box(**record))
    world.wait_replaced("alice", former)
    assert world.key("alice") == key
    assert has_work(world)
    assert world.names() == ["alice"]


def test_a_missing_network_is_reported_and_awaited(world: World, network: str) -> None:
    world.docker.create_network(network)
    record = {"network": {"mode": network}}
    former, key = work_in(world, **record)
    # Else the daemon may start the container before the network is gone, which then is in use.
    with world.daemon.frozen():
        world.docker.stop(world.name("alice"))
        world.docker.rm_network(network)
    row = world.wait_error("alice", f"network {network} not found")
    assert network in row["next"]
    world.docker.create_network(network)
    world.wait_replaced("alice", former)
    assert world.key("alice") == key
    assert has_work(world)


def test_a_recreated_sidecar(world: World, foreign: list[str]) -> None:
    sidecar = f"{world.instance.prefix}sidecar"
    foreign.append(sidecar)
    init = {"Init": True}
    world.docker.run(sidecar, "sleep", "1000000", host_config=init)
    former, key = work_in(world, network={"mode": f"container:{sidecar}"})
    world.docker.rm(sidecar)
    world.docker.stop(world.name("alice"))
    world.wait_error("alice", "No such container")
    world.docker.run(sidecar, "sleep", "1000000", host_config=init)
    world.wait_replaced("alice", former)
    assert world.key("alice") == key
    assert has_work(world)


def test_a_host_folder_that_was_missing(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    mounts = [{"host_path": str(folder), "container_path": "/models"}]
    former, _ = work_in(world, mounts=mounts)
    shutil.rmtree(folder)
    world.docker.stop(world.name("alice"))
    world.wait_error("alice", str(folder))
    folder.mkdir()
    world.converge()
    assert world.id("alice") == former


def test_a_device_that_was_missing(world: World, tmp_path: Path) -> None:
    device = Path("/dev") / f"rcl-{secrets.token_hex(4)}"

    def plug() -> None:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))

    plug()
    try:
        former, _ = work_in(world, resources={"devices": [str(device)]})
        device.unlink()
        world.docker.stop(world.name("alice"))
        world.wait_error("alice", str(device))
        plug()
        world.converge()
    finally:
        device.unlink(missing_ok=True)
    assert world.id("alice") == former


@pytest.fixture
def image(world: World) -> Iterator[str]:
    """A second name of the test's image, which is removed in the end."""
    name = f"{world.instance.prefix}image:latest"
    tag_image(world, name)
    yield name
    world.daemon.close()
    world.docker.purge(world.instance.name)
    with suppress(DockerError):
        world.docker.rm_image(name)


def tag_image(world: World, name: str) -> None:
    world.docker.tag(TEST_IMAGE, name.partition(":")[0])


def test_an_image_removed_under_a_stopped_container(world: World, image: str) -> None:
    record = {"image": image, "pull": "never"}
    former, _ = work_in(world, **record)
    world.declare(alice=box("stopped", **record))
    world.wait_status(alice="STOPPED")
    world.docker.rm_image(image)
    world.declare(alice=box(**record))
    world.converge("alice")
    assert world.id("alice") == former
    world.docker.rm(world.name("alice"))
    world.wait_error("alice", "No such image")
    tag_image(world, image)
    world.converge("alice")
    assert has_work(world)


def test_flushed_firewall_rules(proxied: World, proxy: FaultProxy) -> None:
    world = proxied
    world.start(alice=box(), bob=box())
    former = world.ids()

    def is_start(request: Request) -> bool:
        return bool(matching("POST", ".*/start")(request))

    def flush() -> None:
        # Each refusal names another endpoint.
        said = IPTABLES.format(name=world.name("alice"), endpoint=secrets.token_hex(32))
        proxy.fault(is_start, Fault(answer=(500, b'{"message": "%s"}' % said.encode())), times=1)

    for _ in range(6):
        flush()
    world.docker.stop(world.name("alice"))
    row = world.wait_error(
        "alice", "driver failed programming", "No chain/target/match by that name"
    )
    assert len(row["reason"]) <= 256
    assert world.state("bob") == "running"
    proxy.clear()
    world.converge()
    assert world.ids() == former
    errors = [e for e in world.daemon.events("sandbox.error") if e["sandbox"] == "alice"]
    assert len(errors) == 1
