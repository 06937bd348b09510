"""Parts of the API that a filtering proxy in front of the real engine forbids."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from reconciler.core.errors import Forbidden
from reconciler.engine.docker import requests
from reconciler.engine.docker.access import Access
from reconciler.engine.docker.engine import DockerEngine
from scripts.image import TEST_IMAGE
from tests.engine.worlds import RealWorld, blueprint
from tests.harness.faults import Fault, answer, part
from tests.harness.proxy import FaultProxy

PAGE = (403, b"<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.")
USED = ("CONTAINERS", "EVENTS", "EXEC", "IMAGES", "INFO", "POST", "VERSION", "VOLUMES")


@contextmanager
def forbidding(world: RealWorld, *parts: str) -> Iterator[FaultProxy]:
    with FaultProxy(world.docker.host) as proxy:
        for name in parts:
            proxy.fault(part(name), answer(403, "Request forbidden by rule"), times=None)
        yield proxy


@asynccontextmanager
async def through(proxy: FaultProxy, world: RealWorld) -> AsyncIterator[DockerEngine]:
    engine = DockerEngine(instance=world.instance, docker_host=proxy.host)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.mark.engine
@pytest.mark.parametrize(
    "parts",
    [(name,) for name in USED]
    + [("VERSION", "PING"), ("VERSION", "INFO"), ("EVENTS", "VOLUMES"), ("POST", "IMAGES")],
    ids="+".join,
)
async def test_doctor_finds_every_forbidden_part(real: RealWorld, parts: tuple[str, ...]) -> None:
    with forbidding(real, *parts) as proxy:
        async with through(proxy, real) as engine:
            access = await engine.access()
            refused = {name for name, error in access.items() if error is not None}
            assert refused == set(parts) & set(USED)
            hidden = {"CONTAINERS": {"POST", "EXEC"}, "POST": {"EXEC"}}.get(parts[0], set())
            assert set(access) == set(USED) - hidden
            for name in set(parts) & set(USED):
                assert f"{name}=1" in str(access[name])
            changes = [r for r in proxy.requests if r.changes and r.status and r.status < 400]
            assert not changes


@pytest.mark.engine
@pytest.mark.parametrize(
    "parts", [(), ("VERSION",), ("VERSION", "PING"), ("INFO",), ("VERSION", "INFO", "PING")]
)
async def test_version_and_info_may_be_forbidden(real: RealWorld, parts: tuple[str, ...]) -> None:
    with forbidding(real, *parts) as proxy:
        async with through(proxy, real) as engine:
            await engine.ping()
            info = await engine.info()
            assert info.api_version >= "1.40"
            assert bool(info.root) == ("INFO" not in parts)
            assert (await engine.list()).sees_volumes


@pytest.mark.engine
async def test_containers_are_listed_if_volumes_are_forbidden(real: RealWorld) -> None:
    with forbidding(real, "VOLUMES") as proxy:
        async with through(proxy, real) as engine:
            container = await engine.create(blueprint(real, "alice"))
            listing = await engine.list()
            assert [row.id for row in listing.containers] == [container]
            assert not listing.sees_volumes
            with pytest.raises(Forbidden, match=r"workspace.*VOLUMES=1"):
                await engine.create_volume(f"openhands-workspace-{real.prefix}alice", {})
            assert [error.part for error in engine.forbidden()] == ["VOLUMES"]
            await real.engine.remove(container)
        proxy.clear()
        async with through(proxy, real) as engine:
            await engine.list()
            assert engine.forbidden() == ()


@pytest.mark.engine
async def test_a_forbidden_command_is_not_created_repeatedly(real: RealWorld) -> None:
    container = await real.engine.create(blueprint(real, "alice", command=["sleep", "60"]))
    await real.engine.start(container)
    with forbidding(real, "EXEC") as proxy:
        async with through(proxy, real) as engine:
            for _ in range(5):
                with pytest.raises(Forbidden, match="EXEC=1"):
                    await engine.run_in(container, ["true"], 10)
            made = [r for r in proxy.requests if r.path.endswith(f"{container}/exec")]
            assert len(made) == 1


@pytest.mark.engine
async def test_forbidden_images_fail_pulls_but_present_ones_work(real: RealWorld) -> None:
    with forbidding(real, "IMAGES") as proxy:
        async with through(proxy, real) as engine:
            with pytest.raises(Forbidden, match="IMAGES=1"):
                await engine.pull(TEST_IMAGE, lambda _: None)
            await engine.create(blueprint(real, "alice"))


@pytest.mark.engine
async def test_a_read_only_proxy_is_one_forbidden_part(real: RealWorld) -> None:
    with forbidding(real, "POST") as proxy:
        async with through(proxy, real) as engine:
            await engine.list()
            for change in (
                engine.create(blueprint(real, "alice")),
                engine.create_volume("openhands-workspace-x", {}),
                engine.start("a" * 64),
            ):
                with pytest.raises(Forbidden, match=r"allow POST=1 in the proxy"):
                    await change
            assert [error.part for error in engine.forbidden()] == ["POST"]


@pytest.mark.engine
async def test_an_html_error_page_is_reduced_to_text(real: RealWorld) -> None:
    with FaultProxy(real.docker.host) as proxy:
        proxy.fault(part("CONTAINERS"), Fault(answer=PAGE), times=None)
        async with through(proxy, real) as engine:
            with pytest.raises(Forbidden, match="Request forbidden by administrative rules"):
                await engine.list()


@pytest.mark.parametrize(
    ("status", "text", "forbidden"),
    [
        (403, "Forbidden", True),
        (401, "Unauthorized", True),
        (405, "method not allowed", True),
        (403, "authorization denied by plugin opa: no", True),
        (403, "endpoint with name a already exists in network bridge", False),
        (403, "network x is not manually attachable", False),
        (401, "unauthorized: authentication required", False),
        (403, "denied: requested access to the resource is denied", False),
        (404, "no such container", False),
        (409, "conflict", False),
        (500, "forbidden", False),
    ],
)
def test_proxy_rules_differ_from_engine_refusals(
    status: int, text: str, *, forbidden: bool
) -> None:
    access = Access(lambda: 0.0)
    found = access.refused(requests.get("containers/json"), status, text)
    assert (found is not None) == forbidden == bool(access.forbidden)


def test_a_refusal_ends_when_answered_or_expired() -> None:
    now = 0.0
    access = Access(lambda: now)
    create, start = requests.post("volumes/create"), requests.post("containers/a/start")
    access.answered(requests.get("volumes"))
    for request in (create, start, requests.get("events")):
        access.refused(request, 403, "no")
    assert [error.part for error in access.forbidden] == ["CONTAINERS", "EVENTS", "POST"]
    access.answered(requests.post("containers/b/start"))
    assert [error.part for error in access.forbidden] == ["EVENTS", "POST"]
    now = 1000.0
    access.refused(requests.get("events"), 403, "no")
    assert [error.part for error in access.forbidden] == ["EVENTS"]
