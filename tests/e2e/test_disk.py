"""Disk pressure and image collection on a real file system and a real engine."""

import asyncio
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from reconciler.engine.docker.client import Client
from tests.e2e.world import World, box, world_on
from tests.harness import engines
from tests.harness.docker import Docker, DockerError
from tests.harness.registry import log_in, make_image, push, registry_in

pytestmark = pytest.mark.engine

MIB = 1 << 20
SMALL = {"RECONCILER_DISK_MIN_FREE": "16m", "RECONCILER_DISK_RESUME_FREE": "24m"}


@contextmanager
def small_disk(folder: Path, size: str = "64m") -> Iterator[Path]:
    """A small file system, removed at the end in every case."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        # An engine that is destroyed unmounts what is below its folder.
        if folder.is_mount():
            subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def on_small_disk(world: World) -> Iterator[World]:
    """A world whose state directory has 64 MiB."""
    world.daemon.env.update(SMALL)
    with small_disk(world.daemon.state_dir):
        yield world
        world.daemon.close()


def fill(folder: Path, free: int) -> Path:
    """Leave so many MiB free."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        file.write(b"\0" * ((63 - free) * MIB))
    return filler


def test_a_full_state_disk_blocks_only_new_sandboxes(
    on_small_disk: World,
) -> None:
    world, daemon = on_small_disk, on_small_disk.daemon
    world.start(alice=box(), gone=box(), carol=box("stopped"))
    before = world.id("alice")
    filler = fill(daemon.state_dir, 10)
    said = daemon.wait_event("disk.pressure")
    assert (said["disk"], said["level"]) == ("state disk", "error")
    assert said["free"] < 16 * MIB < said["total"]
    world.declare(alice=box(env={"NEW": "yes"}), carol=box(), bob=box())
    world.wait(lambda: world.state("carol") == "running" and world.state("gone") is None)
    world.wait_status(alice="RUNNING", carol="RUNNING", bob="MISSING")
    # Replaced it is only once there is room for the new one.
    assert world.id("alice") == before
    notice = f"state disk {daemon.state_dir}"
    assert world.row("bob")["reason"].startswith(f"{notice} has ")
    # The numbers may be others from one measurement to the next.
    world.wait(lambda: world.row("bob")["reason"] in daemon.cli("status").stdout)
    assert f"\n{notice}" in daemon.cli("status").stdout
    planned = daemon.cli("plan")
    assert planned.returncode == 2
    assert "bob: waiting: state disk" in planned.stdout
    examined = daemon.cli("doctor")
    assert examined.returncode == 1
    assert "FAIL state disk" in examined.stdout
    assert "no sandbox is created below 16.0 MiB" in examined.stdout
    # Between the two limits, a new process waits too.
    daemon.kill9()
    fill(daemon.state_dir, 20)
    mark = daemon.mark()
    daemon.start()
    daemon.wait_event("disk.pressure", since=mark)
    world.wait_status(alice="RUNNING", carol="RUNNING", bob="MISSING")
    filler.unlink()
    daemon.wait_event("disk.relieved", since=mark)
    world.converge("alice", "bob", "carol")
    assert world.id("alice") != before
    assert world.env("alice")["NEW"] == "yes"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry_in(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def images(registry: str, engine: Docker) -> Iterator[list[str]]:
    """Three images of 20 MiB that are in the registry and not on the engine."""
    names = [f"{registry}/team/{secrets.token_hex(4)}" for _ in range(3)]
    asyncio.run(_publish(engine, names))
    yield [f"{name}:latest" for name in names]
    for name in names:
        with suppress(DockerError):
            engine.rm_image(f"{name}:latest")


async def _publish(engine: Docker, names: list[str]) -> None:
    client = Client(engine.host)
    try:
        for name in names:
            make_image(engine, name, 20)
            await push(client, name)
            engine.rm_image(f"{name}:latest")
    finally:
        await client.close()


def test_an_unused_pulled_image_is_collected(
    world: World, images: list[str], engine: Docker, tmp_path: Path
) -> None:
    unused, stopped, foreign = images
    log_in(tmp_path, unused.partition("/")[0])
    world.daemon.env.update(DOCKER_CONFIG=str(tmp_path), RECONCILER_IMAGE_MIN_AGE="0s")
    sandboxes = {
        "alice": box(image=unused),
        "bob": box("stopped", image=stopped),
        "carol": box(image=foreign),
    }
    world.start(**sandboxes)
    somebody = engine.create(world.name("somebody"), image=foreign)
    world.declare(bob=box("stopped", image=stopped))
    world.converge("bob")
    there = {image["Id"] for image in engine.images()}
    gone = engine.image(unused)["Id"]
    assert world.daemon.terminate() == 0
    try:
        # Never so much is free: all that may go goes.
        world.daemon.env["RECONCILER_DISK_MIN_FREE_PERCENT"] = "100"
        world.declare(bob=box("stopped", image=stopped), dave=box())
        world.daemon.start()
        logged = world.daemon.wait_event("image.collected")
        assert (logged["image"], logged["image_id"]) == (unused, gone)
        assert logged["bytes"] > 0
        world.daemon.wait_event("disk.pressure")
        world.wait_status(bob="STOPPED", dave="MISSING")
        assert len(world.daemon.events("image.collected")) == 1
        left = {image["Id"] for image in engine.images()}
        assert gone not in left
        kept = {engine.image(name)["Id"] for name in (stopped, foreign)}
        assert kept <= there & left
    finally:
        engine.rm(somebody)


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[World]:
    """A world on an engine that has 128 MiB for all its data."""
    name = secrets.token_hex(3)
    data = engines.directory_of(name) / "data"
    limits = {"RECONCILER_DISK_MIN_FREE": "20m", "RECONCILER_DISK_RESUME_FREE": "30m"}
    with small_disk(data, "128m"), engines.private_engine(name) as engine:
        limits["RECONCILER_IMAGE_MIN_AGE"] = "0s"
        with world_on(Docker(engine.host), tmp_path / "crowded", **limits) as world:
            yield world


def test_the_oldest_image_makes_room_before_pressure_is_reported(
    crowded: World, images: list[str], tmp_path: Path
) -> None:
    older, newer, _ = images
    log_in(tmp_path, older.partition("/")[0])
    crowded.daemon.env.update(DOCKER_CONFIG=str(tmp_path))
    crowded.start(alice=box(image=older))
    crowded.declare(alice=box(image=older), bob=box(image=newer))
    crowded.converge("alice", "bob")
    crowded.declare(keep=box("stopped"), carol=box("stopped"))
    crowded.converge("keep", "carol")
    data = Path(crowded.docker.info()["DockerRootDir"])
    free = shutil.disk_usage(data).free
    with (data / "filler").open("wb") as file:
        file.write(b"\0" * (free - 12 * MIB))
    logged = crowded.daemon.wait_event("image.collected")
    assert logged["image"] == older
    assert logged["bytes"] > 20 * MIB
    assert shutil.disk_usage(data).free > 30 * MIB
    crowded.declare(keep=box("stopped"), carol=box("stopped"), dave=box())
    crowded.converge("keep", "carol", "dave")
    assert [line["image"] for line in crowded.daemon.events("image.collected")] == [older]
    assert not crowded.daemon.events("disk.pressure")
    assert crowded.docker.image(newer)
