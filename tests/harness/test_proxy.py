import asyncio
import gc
import json
import socket
import sys
import time
from http.client import BadStatusLine, IncompleteRead
from queue import Queue
from threading import Thread
from typing import Any

import aiodocker
import pytest

from tests.harness import faults
from tests.harness.docker import Docker, DockerError, labels
from tests.harness.faults import matching
from tests.harness.instance import Instance
from tests.harness.proxy import FaultProxy
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.engine
BROKEN = (OSError, BadStatusLine, IncompleteRead)


@pytest.fixture
def through(proxy: FaultProxy) -> Docker:
    return Docker(proxy.host, timeout=10)


def test_requests_are_numbered_and_pass_unchanged(
    proxy: FaultProxy, through: Docker, instance: Instance
) -> None:
    name = instance.container("alice")
    through.run(name, labels=labels(instance.name, "alice"))
    assert through.exec(name, "echo", "hello") == (0, "hello\n")
    wait_until(lambda: "serving" in through.logs(name))
    assert through.inspect(name) == instance.docker.inspect(name)
    assert [request.number for request in proxy.requests] == list(range(len(proxy.requests)))
    create = proxy.seen(matching("POST", "/containers/create"))[0]
    assert (create.query, create.status, create.changes) == ({"name": name}, 201, True)
    assert json.loads(create.body)["Labels"] == labels(instance.name, "alice")


def test_dropped_before_the_engine_and_cut_after(
    proxy: FaultProxy, through: Docker, instance: Instance
) -> None:
    name, creating = instance.container("alice"), matching("POST", "/containers/create")
    proxy.fault(creating, faults.drop())
    with pytest.raises(BROKEN):
        through.create(name, labels=labels(instance.name, "alice"))
    assert not instance.docker.exists(name)
    proxy.fault(creating, faults.cut())
    with pytest.raises(BROKEN):
        through.create(name, labels=labels(instance.name, "alice"))
    assert instance.docker.exists(name)
    with pytest.raises(DockerError, match="409"):
        through.create(name)


@pytest.mark.parametrize("status", [404, 409, 500])
def test_responses_can_be_scripted(proxy: FaultProxy, through: Docker, status: int) -> None:
    proxy.fault(matching("GET", "/info"), faults.answer(status, "as told"), times=2)
    for _ in range(2):
        with pytest.raises(DockerError, match=f"{status}: as told"):
            through.info()
    assert through.info()["ID"]


@pytest.mark.parametrize("fault", [faults.garbage(), faults.truncate()])
def test_responses_can_be_garbage(proxy: FaultProxy, through: Docker, fault: faults.Fault) -> None:
    proxy.fault(matching("GET", "/info"), fault)
    with pytest.raises(json.JSONDecodeError):
        through.info()


@pytest.mark.parametrize("fault", [faults.hang(), faults.hang_after()])
def test_a_hung_request_blocks_no_other(
    proxy: FaultProxy, through: Docker, fault: faults.Fault
) -> None:
    proxy.fault(matching("GET", "/info"), fault)
    with pytest.raises(TimeoutError):
        Docker(proxy.host, timeout=0.3).info()
    assert through.version()["ApiVersion"]
    proxy.fault(matching("GET", "/info"), fault)
    failed: Queue[Any] = Queue()
    waiting = Thread(target=lambda: failed.put(_error(through)))
    waiting.start()
    wait_until(lambda: any(connection.hangs for connection in list(proxy._connections)))
    proxy.release()
    waiting.join(5)
    assert isinstance(failed.get_nowait(), BROKEN)


def _error(docker: Docker) -> BaseException | None:
    try:
        docker.info()
    except BROKEN as error:
        return error
    return None


def test_delay_and_refusal(proxy: FaultProxy, through: Docker) -> None:
    proxy.fault(matching("GET", "/info"), faults.delay(0.3))
    start = time.monotonic()
    through.info()
    assert time.monotonic() - start >= 0.3
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        through.info()
    proxy.accept()
    assert through.info()["ID"]


def test_callbacks_run_before_and_after_a_request(
    proxy: FaultProxy, through: Docker, instance: Instance
) -> None:
    name, seen = instance.container("alice"), []
    creating = matching("POST", "/containers/create")

    def note(side: str) -> faults.Predicate:
        def look(request: faults.Request) -> bool:
            if creating(request):
                seen.append((side, instance.docker.exists(name), request.status))
            return True

        return look

    proxy.on_request(note("before"))
    proxy.on_response(note("after"))
    through.create(name, labels=labels(instance.name, "alice"))
    assert seen == [("before", False, None), ("after", True, 201)]


async def _events(docker: aiodocker.Docker, name: str, until: str) -> list[str]:
    actions: list[str] = []
    async with docker._query("events", params={"filters": {"container": [name]}}) as response:
        async for line in response.content:
            actions.append(json.loads(line)["Action"])
            if actions[-1] == until:
                break
        response.close()
    return actions


async def _events_through(proxy: FaultProxy, instance: Instance) -> list[str]:
    name = instance.container("alice")
    docker = aiodocker.Docker(proxy.host)
    try:
        async with asyncio.timeout(20):
            watching = asyncio.create_task(_events(docker, name, "destroy"))
            await asyncio.to_thread(proxy.wait_request, matching("GET", "/events"))
            await asyncio.sleep(0.2)
            own = labels(instance.name, "alice")
            await asyncio.to_thread(instance.docker.run, name, labels=own)
            await asyncio.to_thread(instance.docker.rm, name)
            return await watching
    finally:
        await docker.close()


async def test_events_pass_are_dropped_and_repeated(proxy: FaultProxy, instance: Instance) -> None:
    def edit(event: dict[str, Any]) -> list[dict[str, Any]]:
        return {"create": [event, event], "start": []}.get(event["Action"], [event])

    plain = await _events_through(proxy, instance)
    assert plain[:2] == ["create", "start"]
    proxy.edit_events(edit)
    edited = await _events_through(proxy, instance)
    assert edited[:3] == ["create", "create", "kill"]
    assert "start" not in edited


async def test_streams_can_be_cut_without_other_calls(
    proxy: FaultProxy, instance: Instance
) -> None:
    docker = aiodocker.Docker(proxy.host)
    try:
        async with asyncio.timeout(20), docker._query("events") as response:
            await docker.version()
            await asyncio.to_thread(proxy.cut_streams)
            with pytest.raises(aiodocker.docker.aiohttp.ClientError):
                await response.content.read()
            response.close()
            await docker.version()
    finally:
        await docker.close()


def test_an_upgraded_exec_passes_both_ways(proxy: FaultProxy, instance: Instance) -> None:
    name = instance.container("alice")
    instance.docker.run(name, labels=labels(instance.name, "alice"))
    body = {"Cmd": ["head", "-n1"], "AttachStdin": True, "AttachStdout": True}
    run = instance.docker.call("POST", f"/containers/{name}/exec", body)["Id"]
    head = f"POST /v1.41/exec/{run}/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}"
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answer:
        client.settimeout(10)
        client.connect(proxy.host.removeprefix("unix://"))
        client.sendall((head + upgrade).encode())
        assert b"101" in answer.readline()
        client.sendall(b"there and back\n")
        assert answer.read().endswith(b"there and back\n")


@pytest.mark.parametrize(("side", "done"), [("before", False), ("after", True)])
def test_a_crash_point_is_exact(
    proxy: FaultProxy, through: Docker, instance: Instance, side: str, *, done: bool
) -> None:
    name, crashed = instance.container("alice"), []
    through.info()
    proxy.crash_at(1, side, lambda: crashed.append(instance.docker.exists(name)))
    with pytest.raises(BROKEN):
        through.create(name, labels=labels(instance.name, "alice"))
    assert crashed == [done]
    assert instance.docker.exists(name) is done


def test_refusing_closes_accepted_connections(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: lost.append(repr(it.object)))
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(proxy.host.removeprefix("unix://"))
            proxy.refuse()
        proxy.accept()
    gc.collect()
    assert not lost
