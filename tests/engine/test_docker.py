"""Behaviour that only a real engine has."""

import asyncio
import json
from typing import Any

import pytest

from reconciler.core.errors import (
    CommandTimeout,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Refused,
    Removing,
)
from reconciler.engine.docker.engine import DockerEngine
from reconciler.engine.docker.stream import LONGEST_LOG_LINE
from tests.engine.worlds import FakeWorld, RealWorld, blueprint, stand_in
from tests.fakes.host import labels
from tests.harness.faults import Fault, answer, hang, matching
from tests.harness.proxy import FaultProxy
from tests.harness.serving import say_nothing, serving

pytestmark = pytest.mark.engine


async def prepared(world: RealWorld, **spec: Any) -> str:
    """Start a sandbox with a prepared workspace."""
    made = blueprint(world, "alice", command=["sleep", "60"], **spec)
    await world.engine.create_volume(str(made.volume), labels(world.instance, "alice"))
    container = await world.engine.create(made)
    await world.engine.prepare(container, stand_in(world, "alice", **spec))
    await world.engine.start(container)
    return container


def stat(world: RealWorld, container: str, path: str) -> str:
    return world.docker.exec(container, "stat", "-c", "%u:%g %a", path)[1].strip()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("path", ["/workspace", "/home/agent/work", "/new/deep/folder/"])
async def test_a_workspace_belongs_to_its_owner(
    real: RealWorld, path: str, *, read_only: bool
) -> None:
    container = await prepared(
        real,
        user="10001:10001",
        workspace={"path": path},
        security={"read_only": read_only},
    )
    assert stat(real, container, path) == "10001:10001 755"
    touch = ["sh", "-c", f"echo data > {path}/file"]
    assert await real.engine.run_in(container, touch, 10) == 0


@pytest.mark.parametrize(
    ("user", "owner", "expected"),
    [
        ("agent", None, "10001:10001"),
        ("10001", None, "10001:10001"),
        ("4242", None, "4242:0"),
        ("agent:root", None, "10001:0"),
        ("agent", "7:8", "7:8"),
        (None, "7:8", "7:8"),
        (None, None, "0:0"),
        ("root", None, "0:0"),
        ("0:0", None, "0:0"),
    ],
)
async def test_the_workspace_owner_is_resolved(
    real: RealWorld, user: str | None, owner: str | None, expected: str
) -> None:
    workspace = {"path": "/workspace", "owner": owner}
    container = await prepared(real, user=user, workspace=workspace)
    assert stat(real, container, "/workspace") == f"{expected} 755"


@pytest.mark.parametrize("kept", [False, True])
async def test_folders_to_the_working_dir_get_the_owner(real: RealWorld, *, kept: bool) -> None:
    if kept and real.podman:
        pytest.skip("Podman leaves what a volume holds at its second use: docs/engines.md")
    spec: dict[str, Any] = {"user": "agent", "workspace": {"path": "/workspace"}}
    if kept:
        container = await prepared(real, **spec)
        touch = ["sh", "-c", "mkdir -m 2700 /workspace/a && mkdir /workspace/beside"]
        assert await real.engine.run_in(container, touch, 10) == 0
        await real.engine.remove(container)
    container = await prepared(real, **spec, working_dir="/workspace/a/b/")
    assert stat(real, container, "/workspace") == "10001:10001 755"
    assert stat(real, container, "/workspace/a") == f"10001:10001 {2700 if kept else 755}"
    assert stat(real, container, "/workspace/a/b") == "10001:10001 755"
    assert await real.engine.run_in(container, ["touch", "file"], 10) == 0


async def test_a_file_at_the_working_dir_is_kept(real: RealWorld) -> None:
    spec: dict[str, Any] = {"user": "agent", "workspace": {"path": "/workspace"}}
    container = await prepared(real, **spec)
    assert await real.engine.run_in(container, ["sh", "-c", "echo data > /workspace/a"], 10) == 0
    await real.engine.remove(container)
    with pytest.raises(EngineError, match=r"(?i)non-directory|not a directory"):
        await prepared(real, **spec, working_dir="/workspace/a")
    await real.engine.remove(f"{real.prefix}alice")
    container = await prepared(real, **spec)
    assert stat(real, container, "/workspace/a") == "10001:10001 644"


async def test_a_link_to_the_working_dir_is_not_followed(real: RealWorld) -> None:
    spec: dict[str, Any] = {"user": "agent", "workspace": {"path": "/workspace"}}
    container = await prepared(real, **spec)
    assert await real.engine.run_in(container, ["ln", "-s", "/etc", "/workspace/a"], 10) == 0
    await real.engine.remove(container)
    container = await prepared(real, **spec, working_dir="/workspace/a")
    assert stat(real, container, "/etc") == "0:0 755"


async def test_folders_above_a_workspace_keep_owner_and_mode(real: RealWorld) -> None:
    container = await prepared(real, user="7:8", workspace={"path": "/home/agent/work"})
    assert stat(real, container, "/home/agent/work") == "7:8 755"
    assert stat(real, container, "/home/agent") == "10001:10001 755"
    assert stat(real, container, "/home") == "0:0 755"


async def test_a_kept_workspace_keeps_its_mode_and_files(real: RealWorld) -> None:
    container = await prepared(real, user="7:8", workspace={"path": "/workspace"})
    script = "chmod 2700 /workspace && echo data > /workspace/file"
    assert await real.engine.run_in(container, ["sh", "-c", script], 10) == 0
    await real.engine.remove(container)
    container = await prepared(real, user="7:8", workspace={"path": "/workspace"})
    assert stat(real, container, "/workspace") == "7:8 2700"
    assert stat(real, container, "/workspace/file") == "7:8 644"


async def test_a_user_missing_in_the_image_is_refused(real: RealWorld) -> None:
    with pytest.raises(Refused, match=r"user .*nobody-here"):
        await prepared(real, user="nobody-here", workspace={"path": "/workspace"})


async def test_a_program_may_be_pid_1_and_log_elsewhere(real: RealWorld) -> None:
    log = {"driver": "local", "options": {"max-file": "2"}}
    command = ["sh", "-c", "echo pid $$; sleep 60"]
    made = blueprint(real, "alice", command=command, init=False, log=log)
    container = await real.engine.create(made)
    await real.engine.start(container)
    config = real.docker.inspect(made.name)["HostConfig"]
    if not real.podman:
        rotation = {"max-size": str(10 << 20), "max-file": "2"}
        assert config["LogConfig"] == {"Type": "local", "Config": rotation}
    async with asyncio.timeout(60):
        while not (lines := await real.engine.log_tail(container, 1)):  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.05)
    assert lines[0].strip() == "pid 1"


async def test_every_limit_reaches_the_engine(real: RealWorld) -> None:
    made = blueprint(
        real,
        "alice",
        command=["sleep", "60"],
        working_dir="/tmp",
        resources={
            "cpus": 0.5,
            "memory": "64m",
            "pids": 50,
            "shm": "16m",
            "ulimits": {"nofile": 100, "core": {"soft": 0, "hard": 1}},
            "devices": ["/dev/null:/dev/nothing:r"],
        },
        security={"cap_drop": ["ALL"], "cap_add": ["CHOWN"], "no_new_privileges": True},
        mounts=[{"host_path": "/", "container_path": "/mnt", "mode": "ro"}],
        log={"max_size": "1m", "max_files": 2},
        published={8000: real.ports[0]},
    )
    await real.engine.start(await real.engine.create(made))
    seen = real.docker.inspect(made.name)
    host = seen["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (500_000_000, 64 << 20, 50)
    assert host["ShmSize"] == 16 << 20
    # Podman writes RLIMIT_NOFILE, and adds another limit.
    ulimits = {(u["Name"].lower(), u["Soft"], u["Hard"]) for u in host["Ulimits"]}
    assert {("nofile", 100, 100), ("core", 0, 1)} <= {
        (name.removeprefix("rlimit_"), *values) for name, *values in ulimits
    }
    assert host["Devices"][0]["PathInContainer"] == "/dev/nothing"
    capabilities = real.docker.exec(made.name, "grep", "CapBnd", "/proc/self/status")[1]
    assert int(capabilities.split()[1], 16) == 1, "CAP_CHOWN and no other"
    assert host["SecurityOpt"] == ["no-new-privileges"]
    if not real.podman:
        assert host["LogConfig"]["Config"] == {"max-size": str(1 << 20), "max-file": "2"}
    assert host["RestartPolicy"]["Name"] in {"no", ""}
    assert host["Init"] is True
    assert host["ExtraHosts"] == ["host.docker.internal:host-gateway"]
    assert host["PortBindings"]["8000/tcp"][0]["HostIp"] == "127.0.0.1"
    assert [(m["Destination"], m["RW"]) for m in seen["Mounts"]] == [("/mnt", False)]
    assert seen["Config"]["WorkingDir"] == "/tmp"
    assert real.docker.exec(made.name, "sh", "-c", "ulimit -n")[1] == "100\n"


async def test_missing_gpus_are_refused(real: RealWorld) -> None:
    if real.podman:
        pytest.skip("Podman passes over gpus: docs/engines.md")
    made = blueprint(real, "alice", resources={"gpus": "all"})
    container = await real.engine.create(made)
    with pytest.raises(Refused, match="could not select device driver"):
        await real.engine.start(container)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"security": {"cap_add": ["NO_SUCH"]}}, "unknown capability"),
        ({"resources": {"memory": "1k"}}, "Minimum memory limit"),
        ({"image": "NOT A NAME"}, "invalid reference format"),
        ({"network": {"extra_hosts": {"a": "b"}}}, "invalid IP address"),
    ],
)
async def test_a_wrong_option_is_refused(real: RealWorld, spec: dict[str, Any], words: str) -> None:
    if real.podman and words in {"Minimum memory limit", "invalid IP address"}:
        pytest.skip("Podman checks neither: docs/engines.md")
    with pytest.raises(Refused, match=words):
        await real.engine.create(blueprint(real, "alice", **spec))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"user": "nobody-here"}, "unable to find user"),
        ({"resources": {"devices": ["/dev/no-such"]}}, "no such file or directory"),
    ],
)
async def test_errors_that_show_at_start_are_refused(
    real: RealWorld, spec: dict[str, Any], words: str
) -> None:
    # Podman checks devices at the create.
    with pytest.raises(Refused, match=words):
        await real.engine.start(await real.engine.create(blueprint(real, "alice", **spec)))


async def test_a_missing_program_under_init_exits_with_127(real: RealWorld) -> None:
    container = await real.engine.create(blueprint(real, "alice", command=["no-such"]))
    await real.engine.start(container)
    async with asyncio.timeout(60):
        while (seen := await real.engine.inspect(container)) is None or seen.live:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert seen.exit_code == (1 if real.podman else 127)


@pytest.mark.parametrize("terminal", [False, True])
async def test_a_line_of_a_megabyte_is_cut(real: RealWorld, *, terminal: bool) -> None:
    script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end; echo err >&2"
    name = f"{real.prefix}alice"
    marks = labels(real.instance, "alice")
    container = real.docker.run(name, "sh", "-c", script, labels=marks, Tty=terminal)
    async with asyncio.timeout(60), real.engine.follow_logs(container, 10) as followed:
        lines = [line async for line in followed]
    tail = await real.engine.log_tail(container, 100)
    # The two outputs are read separately, so their order is unknown.
    assert {"end", "err"} < set(tail)
    assert "end" in lines
    assert max((*tail, *lines), key=len) == "x" * LONGEST_LOG_LINE


async def test_a_stream_left_early_is_closed(real: RealWorld) -> None:
    assert isinstance(real.engine, DockerEngine)
    made = blueprint(real, "alice", command=["sh", "-c", "while echo tick; do sleep 0.01; done"])
    container = await real.engine.create(made)
    await real.engine.start(container)
    for _ in range(3):
        async with real.engine.follow_logs(container, 10) as lines, real.engine.events():
            await anext(lines)
    connectors = [client.connector for client in await real.engine._client._clients()]
    assert [len(connector._acquired) for connector in connectors] == [0, 0]


async def test_many_streams_leave_room_for_calls(real: RealWorld) -> None:
    async with asyncio.timeout(60):
        streams = [real.engine.events() for _ in range(120)]
        for stream in streams:
            await stream.__aenter__()
        await real.engine.ping()
        for stream in streams:
            await stream.__aexit__(None, None, None)


async def test_a_missing_engine_is_reported_and_retried(tmp_path: Any) -> None:
    engine = DockerEngine(instance="mine", docker_host=f"unix://{tmp_path}/none.sock")
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="check that the engine is running"):
            await engine.ping()
    with pytest.raises(EngineUnavailable):
        async with engine.events():
            pass
    await engine.close()


async def test_a_silent_engine_times_out(tmp_path: Any) -> None:
    path = f"{tmp_path}/mute.sock"
    engine = DockerEngine(
        instance="mine", docker_host=f"unix://{path}", call_timeout=0.2, read_timeout=0.2
    )
    async with serving(say_nothing, asyncio.start_unix_server, path):
        calls = [
            engine.list(),
            engine.remove("a"),
            engine.stop("a", 0),
            engine.log_tail("a", 1),
        ] * 5
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {EngineTimeout}
        await engine.close()


async def test_a_hanging_command_leaves_one_process(
    real: RealWorld,
) -> None:
    container = await prepared(real, workspace={"path": "/workspace"})
    hanging = ["sh", "-c", "echo $$ >> /tmp/begun; exec sleep 1000"]
    for _ in range(3):
        with pytest.raises(CommandTimeout):
            await real.engine.run_in(container, hanging, 0.5)
    (pid,) = real.docker.exec(container, "cat", "/tmp/begun")[1].split()
    assert real.docker.exec(container, "kill", pid)[0] == 0
    async with asyncio.timeout(60):
        while real.docker.exec(container, "test", "-d", f"/proc/{pid}")[0] == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    with pytest.raises(CommandTimeout, match="within"):
        await real.engine.run_in(container, hanging, 0.5)


async def test_a_slow_removal_is_polled_less_and_less(real: RealWorld) -> None:
    container = await prepared(real, workspace={"path": "/workspace"})
    with FaultProxy(real.docker.host) as proxy:
        proxy.fault(matching("DELETE", ".*"), answer(409), times=None)
        engine = DockerEngine(instance=real.instance, docker_host=proxy.host, call_timeout=2)
        with pytest.raises(EngineTimeout, match="within 2 s"):
            await engine.remove(container)
        looks = proxy.seen(matching("GET", f"/containers/{container}/json"))
        await engine.close()
    assert 2 <= len(looks) <= 8


@pytest.mark.parametrize("method", ["DELETE", "nothing"])
async def test_a_slow_removal_is_not_a_wedged_engine(real: RealWorld, method: str) -> None:
    container = await prepared(real, workspace={"path": "/workspace"})
    told = real.docker.inspect(container)
    told["State"]["Status"] = "removing"
    with FaultProxy(real.docker.host) as proxy:
        proxy.fault(matching(method, ".*"), hang(), times=None)
        proxy.fault(matching("DELETE", ".*"), answer(409), times=None)
        said = Fault(answer=(200, json.dumps(told).encode()))
        proxy.fault(matching("GET", f"/containers/{container}/json"), said, times=None)
        engine = DockerEngine(instance=real.instance, docker_host=proxy.host, call_timeout=1)
        with pytest.raises(Removing, match="still removing"):
            await engine.remove(container)
        proxy.clear()
        await engine.close()
    # With time enough for a busy machine.
    await real.engine.remove(container)


async def test_a_link_with_a_very_long_target_is_followed(real: RealWorld) -> None:
    spec = {"workspace": {"path": "/workspace"}, "user": "1000", "working_dir": "/workspace/proj"}
    container = await prepared(real, **spec)
    target = "/" + "/".join(["<" * 250] * 12)
    script = f"rmdir /workspace/proj && ln -s '{target}' /workspace/proj"
    code, said = real.docker.exec(container, "sh", "-c", script, user="0")
    assert code == 0, said
    await real.engine.prepare(container, stand_in(real, "alice", **spec))


async def test_an_endless_header_is_an_error_of_its_request(tmp_path: Any) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        said = '{"ApiVersion": "1.41", "MinAPIVersion": "1.12"}'
        odd = "" if "/version" in head else f"X-Odd: {'x' * 200_000}\r\n"
        writer.write(
            f"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"{odd}Content-Length: {len(said)}\r\n\r\n{said}".encode()
        )
        await writer.drain()

    engine = DockerEngine(instance="mine", docker_host=f"unix://{tmp_path}/odd.sock")
    made = blueprint(FakeWorld(), "alice", user="1000", workspace={"path": "/workspace"})
    async with serving(talk, asyncio.start_unix_server, f"{tmp_path}/odd.sock"):
        for call in (engine.inspect("a"), engine.start("a"), engine.prepare("a", made)):
            with pytest.raises(EngineError, match="cannot be read") as caught:
                await call
            assert not isinstance(caught.value, EngineUnavailable)
        await engine.close()


@pytest.mark.parametrize(
    ("body", "status"),
    [("not json", 200), ("[]", 200), ('[{"Id": 1}]', 200), ("{}", 200), ("<html>", 500)],
)
async def test_an_undecodable_response_is_an_error(tmp_path: Any, body: str, status: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        version = '{"ApiVersion": "1.41", "MinAPIVersion": "1.12"}'
        said = version if "/version" in head else body
        code = 200 if "/version" in head else status
        kind = "application/json" if status == 200 else "text/plain"
        writer.write(
            f"HTTP/1.1 {code} X\r\nContent-Type: {kind}\r\nConnection: close\r\n"
            f"Content-Length: {len(said)}\r\n\r\n{said}".encode()
        )
        await writer.drain()

    engine = DockerEngine(instance="mine", docker_host=f"unix://{tmp_path}/odd.sock")
    async with serving(talk, asyncio.start_unix_server, f"{tmp_path}/odd.sock"):
        with pytest.raises(EngineError):
            await engine.list()
        with pytest.raises(EngineError):
            await engine.inspect("a")
        await engine.close()
