"""Pulls from a registry on this machine that requires a password."""

import asyncio
import base64
import io
import secrets
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from reconciler.core.errors import PullFailed
from reconciler.engine.docker.client import Client
from reconciler.engine.docker.engine import DockerEngine
from reconciler.engine.docker.requests import Request
from reconciler.engine.protocol import PullProgress
from tests.engine.worlds import RealWorld
from tests.harness.docker import DockerError
from tests.harness.instance import claim_ports
from tests.harness.registry import log_in, make_image, push, registry_in
from tests.harness.serving import say_nothing, serving

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry."""
    with registry_in(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
async def image(registry: str, real: RealWorld) -> AsyncIterator[str]:
    """An image with a unique layer, in the registry and not on the engine."""
    name = f"{registry}/team/{secrets.token_hex(4)}"
    client = Client(real.docker.host)
    await _import(client, name)
    await push(client, name)
    real.docker.rm_image(f"{name}:latest")
    yield name
    await client.close()
    for row in real.docker.images():
        for found in (row["RepoTags"] or []) + (row["RepoDigests"] or []):
            if found.startswith(name):
                with suppress(DockerError):
                    real.docker.rm_image(found)


async def _import(client: Client, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("noise")
        entry.size = 1 << 18
        archive.addfile(entry, io.BytesIO(secrets.token_bytes(entry.size)))
    params = {"fromSrc": "-", "repo": name, "tag": "latest"}
    headers = {"Content-Type": "application/x-tar"}
    await client.call(Request("POST", "images/create", params, buffer.getvalue(), headers), 30)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Docker's config.json."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


async def test_a_pull_with_credentials(real: RealWorld, image: str, config: Path) -> None:
    log_in(config, image.partition("/")[0])
    seen: list[PullProgress] = []
    assert not await real.engine.has_image(image)
    await real.engine.pull(image, seen.append)
    assert await real.engine.has_image(image)
    # Podman also counts the image's configuration, and reports no end of a layer.
    assert (seen[-1].layers_done, seen[-1].layers) == ((0, 2) if real.podman else (1, 1))
    assert seen[-1].bytes_done == seen[-1].bytes_total


async def test_a_pull_by_digest(real: RealWorld, image: str, config: Path) -> None:
    log_in(config, image.partition("/")[0])
    await real.engine.pull(image, lambda _: None)
    (named,) = real.docker.image(image)["RepoDigests"]
    real.docker.rm_image(f"{image}:latest")
    assert not await real.engine.has_image(named)
    await real.engine.pull(named, lambda _: None)
    assert await real.engine.has_image(named)


@pytest.mark.parametrize("auth", [None, base64.b64encode(b"me:wrong").decode()])
async def test_a_pull_with_wrong_credentials_fails(
    real: RealWorld, image: str, config: Path, auth: str | None
) -> None:
    if auth:
        log_in(config, image.partition("/")[0], auth)
    with pytest.raises(PullFailed, match=image) as caught:
        await real.engine.pull(image, lambda _: None)
    assert "wrong" not in str(caught.value)


async def test_pulling_a_moved_tag_leaves_the_old_image_unnamed(
    real: RealWorld, image: str, config: Path
) -> None:
    """It is still listed, by an id that can be removed once nothing uses it."""
    log_in(config, image.partition("/")[0])
    await real.engine.pull(image, lambda _: None)
    old = await real.engine.image_id(image)
    assert old is not None
    made = make_image(real.docker, image)
    client = Client(real.docker.host)
    await push(client, image)
    await client.close()
    real.docker.tag(old, image)
    real.docker.rm_image(made)
    await real.engine.pull(image, lambda _: None)
    new = await real.engine.image_id(image)
    listed = {found.id: found for found in await real.engine.images()}
    assert (new, old in listed) == (made, True)
    assert listed[made].references == (f"{image}:latest",)
    await real.engine.remove_image(old)
    assert old not in {found.id for found in await real.engine.images()}
    assert await real.engine.image_id(image) == made


async def test_a_pull_of_a_missing_image_fails(
    real: RealWorld, registry: str, config: Path
) -> None:
    log_in(config, registry)
    with pytest.raises(PullFailed, match="nothing"):
        await real.engine.pull(f"{registry}/nothing:1", lambda _: None)


async def test_a_silent_registry_times_out(real: RealWorld, config: Path) -> None:
    with claim_ports() as ports:
        async with serving(say_nothing, asyncio.start_server, "127.0.0.1", ports[0]):
            host = real.docker.host
            engine = DockerEngine(instance="x", docker_host=host, read_timeout=5, pull_timeout=1)
            with pytest.raises(PullFailed, match="did not end within 1 s"):
                await engine.pull(f"127.0.0.1:{ports[0]}/mute:1", lambda _: None)
            await engine.close()
