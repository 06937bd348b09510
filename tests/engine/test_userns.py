"""An engine with userns-remap: on the host, files of containers belong to other ids."""

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from reconciler.core.errors import EngineError
from reconciler.engine.docker.chown import Owner, is_remapped, remapped_root
from tests.engine.test_docker import prepared, stat
from tests.engine.worlds import RealWorld, closing
from tests.harness.docker import Docker
from tests.harness.faults import answer, part
from tests.harness.instance import Instance, instance_on
from tests.harness.proxy import FaultProxy
from tests.harness.remapped import remapped_engine

OPTIONS = ("name=seccomp,profile=default", "name=userns")
ROOT = Owner(300000, 400000)


@pytest.fixture(scope="module")
def remapped() -> Iterator[Docker]:
    with remapped_engine(secrets.token_hex(3)) as engine:
        yield engine


@pytest.fixture
async def world(remapped: Docker) -> AsyncIterator[RealWorld]:
    with instance_on(remapped) as own:
        made = RealWorld(own)
        async with closing(made):
            yield made


@pytest.mark.engine
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("user", "owner", "expected"),
    [
        (None, None, "0:0"),
        ("10001:10001", None, "10001:10001"),
        ("agent", None, "10001:10001"),
        ("agent", "10001:10001", "10001:10001"),
        (None, "7:8", "7:8"),
    ],
)
async def test_a_workspace_belongs_to_its_user(
    world: RealWorld, user: str | None, owner: str | None, expected: str, *, read_only: bool
) -> None:
    spec: dict[str, Any] = {"user": user, "workspace": {"path": "/workspace", "owner": owner}}
    container = await prepared(world, **spec, security={"read_only": read_only})
    assert stat(world, container, "/workspace") == f"{expected} 755"
    assert await world.engine.run_in(container, ["touch", "/workspace/file"], 10) == 0


@pytest.mark.engine
async def test_an_unmapped_id_is_reported(world: RealWorld) -> None:
    with pytest.raises(EngineError, match=r"host ID|mapped"):
        await prepared(world, user="100000:100000", workspace={"path": "/workspace"})


@pytest.mark.engine
async def test_an_owner_that_cannot_be_compared_is_accepted(world: RealWorld) -> None:
    with FaultProxy(world.docker.host) as proxy:
        proxy.fault(part("INFO"), answer(403), times=None)
        seen = Instance(world.instance, world.prefix, world.ports, Docker(proxy.host))
        own = RealWorld(seen)
        async with closing(own):
            container = await prepared(own, user="agent", workspace={"path": "/workspace"})
            assert stat(world, container, "/workspace") == "10001:10001 755"


@pytest.mark.parametrize(
    ("folder", "options", "root"),
    [
        ("/var/lib/docker/300000.400000", OPTIONS, ROOT),
        ("/var/lib/docker/300000.400000", ("name=seccomp",), None),
        ("/var/lib/docker", OPTIONS, None),
        ("/data/1.2", (), None),
    ],
)
def test_what_root_is_on_the_host(
    folder: str, options: tuple[str, ...], root: Owner | None
) -> None:
    assert remapped_root(folder, options) == root


@pytest.mark.parametrize(
    ("seen", "owner", "same"),
    [
        (Owner(310001, 410001), Owner(10001, 10001), True),
        (Owner(300000, 400000), Owner(0, 0), True),
        (Owner(300000, 400000), Owner(10001, 10001), False),
        (Owner(0, 0), Owner(10001, 10001), False),
        (Owner(900001, 900001), Owner(70000, 70000), True),
        (Owner(310001, 410001), Owner(0, 0), False),
    ],
)
def test_an_owner_on_the_host_is_compared_with_that_in_the_container(
    seen: Owner, owner: Owner, *, same: bool
) -> None:
    assert is_remapped(seen, owner, ROOT) is same
