"""A host with an engine, real or in memory, and changes that bypass the engine under test."""

import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Protocol

from reconciler.core import naming
from reconciler.core.container_config import ContainerConfig
from reconciler.core.observed import CheckState, Phase
from reconciler.core.spec import SandboxSpec
from reconciler.engine.docker.engine import DockerEngine
from reconciler.engine.protocol import Engine
from scripts.image import TEST_IMAGE
from tests.fakes.engine import FakeEngine
from tests.fakes.host import FakeHost, labels
from tests.harness.docker import DockerError
from tests.harness.instance import Instance
from tests.harness.registry import CHECKED_FILE, make_checked_image, make_image

CHANGED: Mapping[str, Any] = {
    "restart_policy": "always",
    "nano_cpus": 5 * 10**8,
    "cpu_shares": 512,
    "cpuset": "0",
    "memory": 48 << 20,
    "memory_swap": -1,
    "memory_reservation": 32 << 20,
    "pids": 50,
}


class World(Protocol):
    """What the contract tests need besides the engine."""

    engine: Engine
    instance: str
    prefix: str
    ports: range
    podman: bool

    async def close(self) -> None: ...
    def kill(self, name: str) -> None: ...
    def pause(self, name: str) -> None: ...
    def rename(self, name: str, new: str) -> None: ...
    def change_limits(self, name: str) -> None: ...
    def remove(self, name: str) -> None: ...
    def add_container(
        self, name: str, marks: Mapping[str, str], image: str = TEST_IMAGE
    ) -> None: ...
    def add_volume(self, name: str, marks: Mapping[str, str]) -> None: ...
    def has_container(self, name: str) -> bool: ...
    def has_volume(self, name: str) -> bool: ...
    def taken_port(self, port: int) -> Any: ...
    def add_network(self, name: str) -> None: ...
    def remove_network(self, name: str) -> None: ...
    def add_image(self) -> str: ...
    def commit(self, name: str) -> str: ...
    def run_image(self, name: str, image: str) -> None: ...
    def tag_image(self, image: str, repository: str) -> None: ...
    def add_checked_image(self) -> str: ...
    def check(self, name: str, *, well: bool) -> None: ...


def blueprint(world: World, sandbox: str, **spec: Any) -> ContainerConfig:
    """A container of the world's instance; ``published``, ``name`` and so on are no spec fields."""
    ports, name = spec.pop("published", {}), spec.pop("name", f"{world.prefix}{sandbox}")
    spec_hash = spec.pop("spec_hash", "1:made-for-a-test")
    nonce = spec.pop("nonce", f"nonce-of-{sandbox}")
    made = SandboxSpec.model_validate({"image": TEST_IMAGE, **spec})
    return ContainerConfig(
        name=name,
        labels={
            **dict.fromkeys(naming.LABELS, ""),
            **labels(world.instance, sandbox, owner="me", nonce=nonce),
            naming.LABEL_SPEC: "test",
            naming.LABEL_SPEC_HASH: spec_hash,
        },
        spec=made,
        env={"COLOUR": "blue", naming.SESSION_KEY_VARIABLE: f"key-of-{sandbox}"},
        ports=ports,
        publish_address="127.0.0.1",
        volume=naming.volume_name(world.prefix, sandbox) if made.workspace else None,
        hostname=made.hostname,
    )


def stand_in(world: World, sandbox: str, **spec: Any) -> ContainerConfig:
    """The temporary container for preparing the sandbox's workspace."""
    return blueprint(
        world,
        sandbox,
        name=naming.stand_in_name(world.prefix, sandbox),
        nonce=f"stand-in-of-{sandbox}",
        **spec,
    )


class FakeWorld:
    def __init__(self) -> None:
        self.host = FakeHost()
        self.instance, self.prefix, self.ports = "mine", "mine-", range(30000, 30100)
        self.podman = False
        self.engine: Engine = FakeEngine(self.host, instance=self.instance)
        self.kill = self.host.kill
        self.pause = self.host.docker_pause
        self.rename = self.host.rename
        self.remove = self.host.remove
        self.change_limits = partial(self.host.docker_update, **CHANGED)
        self.add_network = self.host.add_network
        self.remove_network = self.host.remove_network

    async def close(self) -> None:
        await self.engine.close()

    def add_container(self, name: str, marks: Mapping[str, str], image: str = TEST_IMAGE) -> None:
        self.host.add_container(name, marks, phase=Phase.CREATED, image=image)

    def add_volume(self, name: str, marks: Mapping[str, str]) -> None:
        self.host.add_volume(name, marks)

    def has_container(self, name: str) -> bool:
        return self.host.find(name) is not None

    def has_volume(self, name: str) -> bool:
        return name in self.host.volumes

    def add_image(self) -> str:
        """Return its name, which no other image has."""
        name = f"{self.prefix}{secrets.token_hex(4)}:latest"
        self.host.images.add(name)
        return name

    def commit(self, name: str) -> str:
        """Create an image of a container, as a person does; return its name."""
        image = f"{name}-snapshot:1"
        self.host.commit(name, image)
        return image

    def run_image(self, name: str, image: str) -> None:
        """Run a container from an image, as a person does."""
        self.host.run_image(name, image)

    def tag_image(self, image: str, repository: str) -> None:
        self.host.images.add(f"{image}={repository}:again")

    def add_checked_image(self) -> str:
        name = self.add_image()
        self.host.checked.add(name)
        return name

    def check(self, name: str, *, well: bool) -> None:
        self.host.check(name, CheckState.HEALTHY if well else CheckState.UNHEALTHY)

    @contextmanager
    def taken_port(self, port: int) -> Iterator[None]:
        self.host.take_port(port)
        yield
        self.host.free_port(port)


class RealWorld:
    def __init__(self, own: Instance) -> None:
        self.docker = own.docker
        self.instance, self.prefix, self.ports = own.name, own.prefix, own.ports
        self.engine: Engine = DockerEngine(instance=own.name, docker_host=own.docker.host)
        self.podman = "Podman" in str(self.docker.version().get("Components"))
        self.kill = self.docker.kill
        self.pause = self.docker.pause
        self.remove = self.docker.rm
        self.remove_network = self.docker.rm_network
        self._foreign: list[tuple[str, str]] = []

    async def close(self) -> None:
        await self.engine.close()
        for method, path in self._foreign:
            with suppress(DockerError):
                self.docker.call(method, path, force=True)

    def rename(self, name: str, new: str) -> None:
        # The method of the same name passes both names on under one.
        self.docker._request("POST", f"/containers/{name}/rename", name=new)

    def add_container(self, name: str, marks: Mapping[str, str], image: str = TEST_IMAGE) -> None:
        self.docker.create(name, "sleep", "60", labels=marks, image=image)
        self._foreign.append(("DELETE", f"/containers/{name}"))

    def add_volume(self, name: str, marks: Mapping[str, str]) -> None:
        self.docker.create_volume(name, marks)
        self._foreign.append(("DELETE", f"/volumes/{name}"))

    def change_limits(self, name: str) -> None:
        body = {
            "RestartPolicy": {"Name": CHANGED["restart_policy"]},
            "NanoCpus": CHANGED["nano_cpus"],
            "CpuShares": CHANGED["cpu_shares"],
            "CpusetCpus": CHANGED["cpuset"],
            "Memory": CHANGED["memory"],
            "MemorySwap": CHANGED["memory_swap"],
            "MemoryReservation": CHANGED["memory_reservation"],
            "PidsLimit": CHANGED["pids"],
        }
        self.docker.call("POST", f"/containers/{name}/update", body)

    def add_network(self, name: str) -> None:
        self._foreign.append(("DELETE", f"/networks/{name}"))
        self.docker.create_network(name)

    def has_container(self, name: str) -> bool:
        return self.docker.exists(name)

    def has_volume(self, name: str) -> bool:
        return name in self.docker.volumes()

    def add_image(self) -> str:
        """Return its name, which no other image has."""
        repository = f"{self.prefix}{secrets.token_hex(4)}"
        self._foreign.append(("DELETE", f"/images/{repository}:latest"))
        make_image(self.docker, repository)
        return f"{repository}:latest"

    def commit(self, name: str) -> str:
        """Create an image of a container, as a person does; return its name."""
        image = f"{name}-snapshot:1"
        self.docker.commit(name, image)
        self._foreign.append(("DELETE", f"/images/{image}"))
        return image

    def run_image(self, name: str, image: str) -> None:
        """Run a container from an image, as a person does."""
        self.docker.run(name, "sleep", "60", image=image)
        self._foreign.insert(0, ("DELETE", f"/containers/{name}"))

    def tag_image(self, image: str, repository: str) -> None:
        self._foreign.append(("DELETE", f"/images/{repository}:again"))
        self.docker.tag(image, repository, "again")

    def add_checked_image(self) -> str:
        """Return a test image that is healthy while a file exists."""
        repository = f"{self.prefix}{secrets.token_hex(4)}"
        self._foreign.append(("DELETE", f"/images/{repository}:latest"))
        make_checked_image(self.docker, repository)
        return f"{repository}:latest"

    def check(self, name: str, *, well: bool) -> None:
        self.docker.exec(name, "touch" if well else "rm", CHECKED_FILE)

    @contextmanager
    def taken_port(self, port: int) -> Iterator[None]:
        with socket.socket() as taker:
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taker.bind(("127.0.0.1", port))
            taker.listen()
            yield


@asynccontextmanager
async def closing(world: World) -> AsyncIterator[World]:
    try:
        yield world
    finally:
        await world.close()
