"""The engine's limit: create and start everything at once, check and store nothing."""

import asyncio
import time
from typing import Any

import aiodocker
from aiohttp import ClientTimeout, UnixConnector

from scripts.image import TEST_IMAGE
from tests.harness.instance import Instance


async def converge(instance: Instance, count: int) -> float:
    """Return the seconds until all run."""
    path = instance.docker.host.removeprefix("unix://")
    connector = UnixConnector(path, limit=0)
    docker = aiodocker.Docker(
        url="unix://localhost",
        connector=connector,
        timeout=ClientTimeout(total=300),
    )
    try:
        await docker.version()
        began = time.monotonic()
        await asyncio.gather(*(_run(docker, instance, number) for number in range(count)))
        return time.monotonic() - began
    finally:
        await docker.close()
        await connector.close()
        remove_all(instance)


async def _run(docker: aiodocker.Docker, instance: Instance, number: int) -> None:
    name = f"{instance.prefix}bare-{number}"
    container = await docker.containers.create(_config(instance, number), name=name)
    await container.start()


def _config(instance: Instance, number: int) -> dict[str, Any]:
    first = instance.ports[2 * number]
    bindings = {
        f"{8000 + offset}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(first + offset)}]
        for offset in (0, 1)
    }
    return {
        "Image": TEST_IMAGE,
        "Cmd": ["serve", "8000", "8001"],
        "Labels": {"io.sandbox-reconciler.instance": instance.name},
        "ExposedPorts": {port: {} for port in bindings},
        "HostConfig": {
            "PortBindings": bindings,
            "Init": True,
            "ExtraHosts": ["host.docker.internal:host-gateway"],
        },
    }


def remove_all(instance: Instance) -> None:
    """Remove the instance's containers one at a time: many at once can wedge an engine."""
    for name in instance.docker.names(instance.name):
        instance.docker.rm(name, volumes=True)
