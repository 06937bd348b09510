import secrets
from collections.abc import Iterator

import pytest

from scripts.image import DEMO_IMAGE, ensure_image
from tests.e2e.world import World
from tests.harness import engines
from tests.harness.instance import claim_ports
from tests.systemd.machine import DOCKER_GROUP, machine
from tests.systemd.service import Service


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The one machine of all these tests, and on it the service, as its README installs it."""
    home = tmp_path_factory.mktemp("systemd")
    name = f"engine-{secrets.token_hex(3)}"
    group = (f"--group={DOCKER_GROUP}",)
    with (
        claim_ports() as ports,
        engines.private_engine(name, arguments=group) as engine,
        machine(home, engine.directory) as own,
    ):
        # The daemon's user on the machine reaches the socket in it.
        engine.directory.chmod(0o711)
        ensure_image(engine.host, DEMO_IMAGE)
        # Every test has its ports; nothing else differs from the shipped settings.
        with (home / "project/config/reconciler.yaml").open("a") as settings:
            settings.write(f"port_range: {ports[0]}-{ports[-1]}\n")
        service = Service(own, engine, ports)
        service.follow_readme("Install")
        yield service
        assert _told_secrets(service) == set()


@pytest.fixture
def service(installed: Service) -> Service:
    """The service as it was installed, its sandboxes as the shipped file declares them."""
    installed.reset()
    return installed


@pytest.fixture
def world(service: Service) -> World:
    """Its sandboxes."""
    return World(service)


def _told_secrets(service: Service) -> set[str]:
    """Find the session keys that anything has written to the journal, ever."""
    service.reset()
    service.machine.settle_journal()
    text = service.machine.sh("journalctl --quiet --all -o export")
    world = World(service)
    return {name for name in world.names() if world.key(name) in text}
