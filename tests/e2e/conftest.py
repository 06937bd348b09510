from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.e2e.world import World
from tests.harness.daemon import Daemon
from tests.harness.docker import Docker, DockerError
from tests.harness.proxy import FaultProxy


@pytest.fixture
def world(daemon: Daemon) -> World:
    """A daemon that is not started yet, and its sandboxes."""
    return World(daemon)


@pytest.fixture
def proxied(world: World, proxy: FaultProxy) -> World:
    """A world whose daemon reaches the engine through the proxy."""
    world.daemon.env["DOCKER_HOST"] = proxy.host
    return world


@pytest.fixture
def foreign(engine: Docker) -> Iterator[list[str]]:
    """Names of foreign containers; containers with these names are removed in the end."""
    names: list[str] = []
    yield names
    for name in names:
        with suppress(DockerError):
            engine.rm(name)
