"""What one test has for itself on an engine that it shares: a name, a prefix, a range of ports."""

import fcntl
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness.docker import Docker

_FIRST, _END, _SIZE = 20000, 30000, 100


@dataclass(frozen=True)
class Instance:
    """One daemon's identity, and the engine that it works on."""

    name: str
    prefix: str
    ports: range
    docker: Docker

    @property
    def port_range(self) -> str:
        return f"{self.ports[0]}-{self.ports[-1]}"

    def container(self, sandbox: str) -> str:
        """Return the container's name of a declared sandbox."""
        return f"{self.prefix}{sandbox}"

    def volume(self, sandbox: str) -> str:
        """Return the name of a declared sandbox's workspace."""
        return f"openhands-workspace-{self.container(sandbox)}"

    def env(self) -> dict[str, str]:
        return {
            "RECONCILER_INSTANCE": self.name,
            "RECONCILER_CONTAINER_NAME_PREFIX": self.prefix,
            "RECONCILER_PORT_RANGE": self.port_range,
            "DOCKER_HOST": self.docker.host,
        }


@contextmanager
def instance_on(docker: Docker) -> Iterator[Instance]:
    """Make an identity that nobody has; afterwards remove all that bears it."""
    name = f"t{secrets.token_hex(4)}"
    with claim_ports() as ports:
        try:
            yield Instance(name, f"{name}-", ports, docker)
        finally:
            docker.purge(name)


@contextmanager
def claim_ports() -> Iterator[range]:
    """Hold a block of free host ports, against every other test on this machine."""
    folder = Path(tempfile.gettempdir()) / "rcl-ports"
    folder.mkdir(exist_ok=True)
    blocks = range(_FIRST, _END, _SIZE)
    start = secrets.randbelow(len(blocks))
    for block in (*blocks[start:], *blocks[:start]):
        ports = range(block, block + _SIZE)
        descriptor = os.open(folder / str(block), os.O_CREAT | os.O_RDWR)
        try:
            if _lock(descriptor) and all(map(_is_free, ports)):
                yield ports
                return
        finally:
            os.close(descriptor)
    raise RuntimeError(f"no {_SIZE} free ports in a row between {_FIRST} and {_END}")


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
