"""Pulls from a registry on this machine that asks for a password."""

import asyncio
import base64
import fcntl
import io
import json
import secrets
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from reconciler.core.errors import PullFailed
from reconciler.engine.docker import DockerEngine
from reconciler.engine.docker_client import Client
from reconciler.engine.docker_requests import Request
from reconciler.engine.protocol import PullProgress
from scripts import debian
from tests.engine.worlds import RealWorld
from tests.harness.docker import DockerError
from tests.harness.instance import claim_ports
from tests.harness.serving import say_nothing, serving
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.engine

# The password "pass", as the registry wants it.
ACCOUNT = "me:$2b$04$CbHCut7PElFuBbVOMdC/M.WE87PxYg2TAq6pfFcOyVQZHd6WLVCNe\n"
AUTH = base64.b64encode(b"me:pass").decode()
CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "{address}"}}
auth: {{htpasswd: {{realm: test, path: {folder}/accounts}}}}
"""


def _program() -> str:
    lock = Path(tempfile.gettempdir()) / "rcl-docker-registry.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if shutil.which("docker-registry") is None:
            debian.install("docker-registry")
    return "docker-registry"


def _answers(address: str) -> bool:
    try:
        urlopen(f"http://{address}/v2/", timeout=1)
    except HTTPError as error:
        error.close()
        return error.code == 401
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry."""
    folder = tmp_path_factory.mktemp("registry")
    (folder / "accounts").write_text(ACCOUNT)
    with claim_ports() as ports:
        address = f"127.0.0.1:{ports[0]}"
        (folder / "config.yml").write_text(CONFIG.format(folder=folder, address=address))
        process = subprocess.Popen([_program(), "serve", str(folder / "config.yml")])
        try:
            wait_until(lambda: _answers(address))
            yield address
        finally:
            process.kill()
            process.wait()


@pytest.fixture
async def image(registry: str, real: RealWorld) -> AsyncIterator[str]:
    """An image with a layer of its own, that is in the registry and not on the engine."""
    name = f"{registry}/team/{secrets.token_hex(4)}"
    client = Client(real.docker.host)
    await _import(client, name)
    await _push(client, name)
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


async def _push(client: Client, name: str) -> None:
    credentials = {"username": "me", "password": "pass"}
    header = base64.urlsafe_b64encode(json.dumps(credentials).encode()).decode()
    request = Request(
        "POST", f"images/{name}/push", {"tag": "latest"}, None, {"X-Registry-Auth": header}
    )
    async with client.stream(request, 30) as chunks:
        said = b"".join([chunk async for chunk in chunks])
    assert b'"error"' not in said


def _login(folder: Path, image: str, auth: str = AUTH) -> None:
    auths = {image.partition("/")[0]: {"auth": auth}}
    (folder / "config.json").write_text(json.dumps({"auths": auths}))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Docker's config.json."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


async def test_a_pull_with_credentials(real: RealWorld, image: str, config: Path) -> None:
    _login(config, image)
    seen: list[PullProgress] = []
    assert not await real.engine.has_image(image)
    await real.engine.pull(image, seen.append)
    assert await real.engine.has_image(image)
    # Podman counts the image's configuration, too, and tells no layer's end.
    assert (seen[-1].layers_done, seen[-1].layers) == ((0, 2) if real.podman else (1, 1))
    assert seen[-1].bytes_done == seen[-1].bytes_total


async def test_a_pull_by_digest(real: RealWorld, image: str, config: Path) -> None:
    _login(config, image)
    await real.engine.pull(image, lambda _: None)
    (named,) = real.docker.image(image)["RepoDigests"]
    real.docker.rm_image(f"{image}:latest")
    assert not await real.engine.has_image(named)
    await real.engine.pull(named, lambda _: None)
    assert await real.engine.has_image(named)


@pytest.mark.parametrize("auth", [None, base64.b64encode(b"me:wrong").decode()])
async def test_a_pull_without_the_right_credentials(
    real: RealWorld, image: str, config: Path, auth: str | None
) -> None:
    if auth:
        _login(config, image, auth)
    with pytest.raises(PullFailed, match=image) as caught:
        await real.engine.pull(image, lambda _: None)
    assert "wrong" not in str(caught.value)


async def test_a_pull_of_what_is_not_there(real: RealWorld, registry: str, config: Path) -> None:
    _login(config, f"{registry}/x")
    with pytest.raises(PullFailed, match="nothing"):
        await real.engine.pull(f"{registry}/nothing:1", lambda _: None)


async def test_a_registry_that_never_answers(real: RealWorld, config: Path) -> None:
    with claim_ports() as ports:
        async with serving(say_nothing, asyncio.start_server, "127.0.0.1", ports[0]):
            host = real.docker.host
            engine = DockerEngine(instance="x", docker_host=host, read_timeout=5, pull_timeout=1)
            with pytest.raises(PullFailed, match="not pulled within 1 s"):
                await engine.pull(f"127.0.0.1:{ports[0]}/mute:1", lambda _: None)
            await engine.close()
