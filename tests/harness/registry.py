"""A registry on this machine that requires a password, and images pushed to it."""

import base64
import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from reconciler.engine.docker.client import Client
from reconciler.engine.docker.requests import Request
from tests.harness.docker import Docker
from tests.harness.instance import claim_ports
from tests.harness.waiting import wait_until

# The password "pass", in the registry's format.
ACCOUNT = "me:$2b$04$CbHCut7PElFuBbVOMdC/M.WE87PxYg2TAq6pfFcOyVQZHd6WLVCNe\n"
AUTH = base64.b64encode(b"me:pass").decode()
CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}}}
http: {{addr: "{address}"}}
auth: {{htpasswd: {{realm: test, path: {folder}/accounts}}}}
"""


@contextmanager
def registry_in(folder: Path) -> Iterator[str]:
    """Run a registry with all data in the folder; yield its address."""
    (folder / "accounts").write_text(ACCOUNT)
    with claim_ports() as ports:
        address = f"127.0.0.1:{ports[0]}"
        (folder / "config.yml").write_text(CONFIG.format(folder=folder, address=address))
        process = subprocess.Popen(["docker-registry", "serve", str(folder / "config.yml")])
        try:
            wait_until(lambda: _answers(address))
            yield address
        finally:
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    try:
        urlopen(f"http://{address}/v2/", timeout=1)
    except HTTPError as error:
        error.close()
        return error.code == 401
    except OSError:
        return False
    return True


async def push(client: Client, repository: str) -> None:
    """Push ``repository:latest`` to the registry that it names."""
    credentials = {"username": "me", "password": "pass"}
    header = base64.urlsafe_b64encode(json.dumps(credentials).encode()).decode()
    request = Request(
        "POST", f"images/{repository}/push", {"tag": "latest"}, None, {"X-Registry-Auth": header}
    )
    async with client.stream(request, 60) as chunks:
        said = b"".join([chunk async for chunk in chunks])
    assert b'"error"' not in said, said


def log_in(folder: Path, address: str, auth: str = AUTH) -> None:
    """Write Docker's config.json with an account of the registry."""
    (folder / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))


def make_image(docker: Docker, repository: str, mib: int = 0) -> str:
    """Make ``repository:latest``: the test image and so many MiB of noise; gives its own id."""
    name, script = (
        f"template-{secrets.token_hex(4)}",
        f"dd if=/dev/urandom of=/noise bs=1M count={mib}",
    )
    template = docker.create(name, "sh", "-c", script)
    try:
        if mib:
            docker.start(name)
            wait_until(lambda: docker.state(name) == "exited")
        query = {"container": template, "repo": repository, "tag": "latest"}
        return str(docker.call("POST", "/commit", {}, **query)["Id"])
    finally:
        docker.rm(template)


CHECKED_FILE = "/tmp/well"


def make_checked_image(docker: Docker, repository: str) -> None:
    """Make ``repository:latest``: the test image, whose HEALTHCHECK looks for a file each 0.2 s."""
    name = f"template-{secrets.token_hex(4)}"
    template = docker.create(name, "true")
    check = {
        "Test": ["CMD", "test", "-e", CHECKED_FILE],
        "Interval": 200_000_000,
        "Timeout": 30_000_000_000,
        "Retries": 2,
    }
    try:
        query = {"container": template, "repo": repository, "tag": "latest"}
        docker.call("POST", "/commit", {"Healthcheck": check}, **query)
    finally:
        docker.rm(template)
