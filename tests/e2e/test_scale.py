"""Fifty sandboxes at once."""

import time

import pytest

from tests.e2e.world import World, web

FIFTY = {f"s{number:02}": web() for number in range(50)}


@pytest.mark.timeout(900)
def test_fifty_sandboxes_are_created_and_deleted(world: World) -> None:
    began = time.monotonic()
    world.declare(**FIFTY)
    world.daemon.start()
    world.converge(*FIFTY, timeout=360)
    print(f"50 sandboxes are RUNNING after {time.monotonic() - began:.1f} s")
    assert len({port for name in FIFTY for port in world.ports(name).values()}) == 50
    assert not world.daemon.events("sandbox.error")
    began = time.monotonic()
    world.declare()
    world.daemon.wait_event("manifest.brake")
    done = world.daemon.cli("apply", "--allow-mass-delete", timeout=360)
    assert done.returncode == 0, done.stderr
    print(f"50 sandboxes are gone after {time.monotonic() - began:.1f} s")
    assert world.names() == []
    assert world.volumes() == set(FIFTY)
