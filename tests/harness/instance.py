"""What a test does not share on a shared engine: a name, a prefix, a range of ports."""

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.harness.docker import Docker

_FIRST, _END, _SIZE = 20000, 30000, 100


@dataclass(frozen=True)
class Instance:
    """One daemon's identity, and its engine."""

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
    """Create a unique identity; afterwards remove all objects with it."""
    name = f"t{secrets.token_hex(4)}"
    with claim_ports() as ports:
        try:
            yield Instance(name, f"{name}-", ports, docker)
        finally:
            docker.purge(name)


@contextmanager
def claim_ports() -> Iterator[range]:
    """Reserve a block of free host ports among all tests on this machine.

    The claim is an abstract socket: it has no file that anybody could put something else in the
    place of, ends with its process, and counts for all who share the network with us.
    """
    blocks = range(_FIRST, _END, _SIZE)
    start = secrets.randbelow(len(blocks))
    for block in (*blocks[start:], *blocks[:start]):
        ports = range(block, block + _SIZE)
        with socket.socket(socket.AF_UNIX) as claim:
            if _bind(claim, f"\0reconciler-test-ports-{block}") and all(map(_is_free, ports)):
                yield ports
                return
    raise RuntimeError(f"no {_SIZE} free ports in a row between {_FIRST} and {_END}")


def _bind(claim: socket.socket, address: str) -> bool:
    try:
        claim.bind(address)
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
