import asyncio
import itertools
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from reconciler.core.errors import (
    Busy,
    CommandTimeout,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Forbidden,
    NotFound,
    Refused,
)
from reconciler.core.health import Health, Verdict
from reconciler.core.spec import HealthSpec
from reconciler.engine.protocol import EngineInfo
from reconciler.engine.reachability import why_unreachable
from reconciler.observe.probes import Prober, Target, target_of
from reconciler.telemetry import events
from tests.core import builders
from tests.fakes.engine import FakeEngine
from tests.harness.descriptors import none_left
from tests.harness.serving import say_nothing, serving
from tests.simulation.simulated import EPOCH, SimulatedClock
from tests.simulation.stage import LogCapture

real_time = pytest.mark.asyncio(loop_factories=["real"])
QUICK = {"interval": "0.05s", "timeout": "0.2s", "startup_grace": "0s", "failures": 2}
# However busy the machine is, an answer that comes is in time.
PATIENT = {**QUICK, "timeout": "60s"}


class Probing:
    """A prober and the verdicts that it reported."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.verdicts: list[tuple[str, Verdict]] = []
        self.inspected: list[str] = []
        self.news = asyncio.Event()
        self.clock = SimulatedClock()
        self.engine_answers = True
        self.info: EngineInfo | None = None
        self.deaf = False
        self.notes = LogCapture(asyncio.get_running_loop().time)
        self.prober = Prober(
            self.engine,
            on_verdict=self._hear,
            request_inspection=self.inspected.append,
            engine_answers=lambda: self.engine_answers,
            engine_info=lambda: self.info,
            recorder=self.notes,
            clock=self.clock,
        )

    def _hear(self, key: str, health: Health) -> None:
        if self.deaf:
            raise RuntimeError("of ours, with a secret")
        self.verdicts.append((key, health.verdict))
        self.news.set()

    async def until(self, *told: tuple[str, Verdict]) -> None:
        while not set(told) <= set(self.verdicts):
            self.news.clear()
            await self.news.wait()

    def answer(self, code: int | Exception) -> None:
        async def run_in(*_: object) -> int:
            if isinstance(code, Exception):
                raise code
            return code

        self.engine.run_in = run_in

    def watch_exec(self, key: str = "alice", **spec: Any) -> None:
        probe = {"kind": "exec", "command": ["check"], "interval": "10s", **spec}
        self.prober.watch(key, target(probe))


def target(spec: dict[str, Any], port: int = 0, run: float = EPOCH) -> Target:
    return Target("id", run, EPOCH, HealthSpec.model_validate(spec), "127.0.0.1", port)


@pytest.fixture
async def probing() -> AsyncIterator[Probing]:
    made = Probing()
    yield made
    await made.prober.close()


@asynccontextmanager
async def listening(reply: bytes | None) -> AsyncIterator[int]:
    """A server that gives one fixed response to any request, or none at all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        if reply is None:
            await say_nothing(reader, writer)
        else:
            writer.write(reply)

    async with serving(serve, asyncio.start_server, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def http(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()


@real_time
@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("200 OK", Verdict.GOOD),
        ("302 Found", Verdict.GOOD),
        ("404 Not Found", Verdict.UNHEALTHY),
        ("503 Busy", Verdict.UNHEALTHY),
    ],
)
async def test_http_probe_checks_the_status(probing: Probing, status: str, verdict: Verdict):
    async with listening(http(status)) as port:
        probing.prober.watch("alice", target(QUICK, port, run=0.0))
        await probing.until(("alice", verdict))


@real_time
@pytest.mark.parametrize("proxied", [False, True])
async def test_a_tcp_probe_needs_a_connection_that_stays(probing: Probing, *, proxied: bool):
    async with listening(None) as port:
        tcp = replace(target({"kind": "tcp", **QUICK}, port, run=0.0), proxied=proxied)
        probing.prober.watch("alice", tcp)
        await probing.until(("alice", Verdict.GOOD))
    await probing.until(("alice", Verdict.UNHEALTHY))


@real_time
@pytest.mark.parametrize(
    ("chunks", "end", "verdict"),
    [
        ([], "close", Verdict.UNHEALTHY),
        ([], "reset", Verdict.UNHEALTHY),
        ([b"220 ready"], "close", Verdict.GOOD),
    ],
)
async def test_a_tcp_probe_behind_a_proxy_needs_a_listener(
    probing: Probing, chunks: list[bytes], end: str, verdict: Verdict
):
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines(chunks)
        if end == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with serving(serve, asyncio.start_server, "127.0.0.1", 0) as server:
        tcp = target({"kind": "tcp", **PATIENT}, server.sockets[0].getsockname()[1], run=0.0)
        probing.prober.watch("alice", replace(tcp, proxied=True))
        await probing.until(("alice", verdict))
    assert probing.verdicts[0] == ("alice", verdict if verdict is Verdict.GOOD else Verdict.BAD)


@real_time
@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_ports_on_all_ipv6_addresses_are_probed_on_loopback(probing: Probing, kind: str):
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http("200 OK"))

    async with serving(serve, asyncio.start_server, "::1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        desired = builders.desired(health={"kind": kind, **QUICK})
        container = builders.container(ports={8000: port}, started_at=0.0)
        probing.prober.watch("alice", target_of(desired, container, "::", EPOCH))
        await probing.until(("alice", Verdict.GOOD))


@real_time
async def test_hanging_probe_delays_no_other_and_ends_unhealthy(probing: Probing):
    async with listening(None) as hangs, listening(http("200 OK")) as well:
        probing.prober.watch("alice", target(PATIENT, hangs, run=0.0))
        probing.prober.watch("bob", target(PATIENT, well, run=0.0))
        await probing.until(("bob", Verdict.GOOD))
        assert probing.verdicts == [("bob", Verdict.GOOD)]
        probing.prober.watch("alice", target(QUICK, hangs, run=0.0))
        await probing.until(("alice", Verdict.UNHEALTHY))
        assert probing.prober.health("alice").reason == "no answer within 0.2 s"


@real_time
@pytest.mark.parametrize("path", ["/%zz", "//", "/é?#", "/@evil:80/"])
async def test_no_path_ends_the_probing(probing: Probing, path: str):
    async with listening(http("500 No")) as port:
        probing.prober.watch("alice", target({**QUICK, "path": path}, port, run=0.0))
        await probing.until(("alice", Verdict.UNHEALTHY))


@real_time
async def test_an_answer_that_only_trickles_ends_with_the_timeout(probing: Probing):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        for byte in itertools.cycle(b"HTTP/1.1 100 C\r\n\r\n"):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    async with serving(serve, asyncio.start_server, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        probing.prober.watch("alice", target(QUICK, port, run=0.0))
        await probing.until(("alice", Verdict.UNHEALTHY))
    assert probing.prober.health("alice").reason == "no answer within 0.2 s"


@real_time
async def test_a_cookie_does_not_end_the_probing(probing: Probing):
    answers = iter([b"HTTP/1.1 200 OK\r\nSet-Cookie: a\xb4=b\r\n\r\n"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert b"cookie" not in request.lower()
        writer.write(next(answers, http("500 No")))

    async with serving(serve, asyncio.start_server, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        probing.prober.watch("alice", target(PATIENT, port, run=0.0))
        await probing.until(("alice", Verdict.GOOD), ("alice", Verdict.UNHEALTHY))
    assert probing.prober.health("alice").reason == "HTTP 500 on /health"


async def test_bug_in_a_probe_is_a_bad_response(probing: Probing):
    probing.answer(RuntimeError("of ours, with a secret"))
    probing.watch_exec(startup_grace="0s", failures=2)
    await asyncio.sleep(60)
    assert probing.verdicts == [("alice", Verdict.BAD), ("alice", Verdict.UNHEALTHY)]
    reason = probing.prober.health("alice").reason
    assert reason == "the response is invalid (RuntimeError)"
    probing.answer(0)
    await asyncio.sleep(60)
    assert probing.verdicts[-1] == ("alice", Verdict.GOOD)


async def test_bug_outside_the_probe_is_logged_and_probing_continues(probing: Probing):
    probing.answer(0)
    probing.deaf = True
    probing.watch_exec()
    await asyncio.sleep(60)
    assert probing.notes.logged(events.TaskFailed)[0]["task"] == "probe alice"
    probing.deaf = False
    await asyncio.sleep(60)
    assert probing.verdicts == [("alice", Verdict.GOOD)]


async def test_sandboxes_made_together_are_probed_apart(probing: Probing):
    times: list[float] = []

    async def run_in(*_: object) -> int:
        times.append(asyncio.get_running_loop().time())
        return 0

    probing.engine.run_in = run_in
    for number in range(100):
        probing.watch_exec(f"pool-{number}")
    await asyncio.sleep(1000)
    settled = [at for at in times if at >= 900]
    assert len(settled) == pytest.approx(1000, abs=10)
    assert max(Counter(map(int, settled)).values()) <= 25


async def test_in_the_startup_grace_nothing_is_unhealthy(probing: Probing):
    probing.answer(1)
    probing.watch_exec(startup_grace="60s", failures=3)
    await asyncio.sleep(59)
    assert probing.verdicts == [("alice", Verdict.BAD)]
    await asyncio.sleep(40)
    assert probing.verdicts[1:] == [("alice", Verdict.UNHEALTHY)]
    assert probing.prober.health("alice").reason == "check ended with exit code 1"


async def test_start_is_noticed_soon_with_a_long_interval(probing: Probing):
    probing.answer(1)
    probing.watch_exec(interval="60s")
    await asyncio.sleep(1)
    probing.answer(0)
    await asyncio.sleep(2)
    assert probing.verdicts[-1] == ("alice", Verdict.GOOD)


async def test_single_bad_response_of_a_healthy_sandbox_is_ignored(probing: Probing):
    probing.answer(0)
    probing.watch_exec(startup_grace="0s", failures=2)
    await asyncio.sleep(1)
    probing.answer(1)
    await asyncio.sleep(10.5)
    probing.answer(0)
    await asyncio.sleep(60)
    assert probing.verdicts == [("alice", Verdict.GOOD)]


@pytest.mark.parametrize("error", [CommandTimeout("it hangs"), Refused("no such program")])
async def test_a_command_that_cannot_run_is_a_bad_answer(probing: Probing, error: Exception):
    probing.answer(error)
    probing.watch_exec(startup_grace="0s", failures=1)
    await asyncio.sleep(1)
    assert probing.prober.health("alice").verdict is Verdict.UNHEALTHY
    assert str(error) in probing.prober.health("alice").reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Forbidden("denied by rule 17"), "EXEC=1"),
        (EngineTimeout("POST /containers/4f1 hangs"), "check whether it is stuck"),
        (EngineUnavailable("gone"), "is unavailable"),
        (EngineUnavailable("x: may open no more files"), "is unavailable"),
        (EngineError("internal error"), "internal error"),
    ],
)
async def test_failed_exec_leaves_health_unknown(probing: Probing, error: Exception, words: str):
    probing.answer(0)
    for key in ("alice", "bob"):
        probing.watch_exec(key, startup_grace="0s", failures=1)
    probing.answer(error)
    probing.watch_exec("carol", startup_grace="0s", failures=1)
    probing.answer(0)
    await asyncio.sleep(1)
    probing.answer(error)
    await asyncio.sleep(600)
    assert sorted(probing.verdicts) == [(key, Verdict.GOOD) for key in ("alice", "bob", "carol")]
    assert words in probing.prober.health("alice").unknown
    (said,) = probing.notes.logged(events.ProbeUnknown)
    assert words in said["cause"]
    probing.answer(0)
    await asyncio.sleep(20)
    assert probing.prober.health("alice").unknown == ""
    assert len(probing.notes.logged(events.ProbeKnown)) == 1
    probing.answer(1)
    await asyncio.sleep(20)
    assert ("alice", Verdict.UNHEALTHY) in probing.verdicts


@pytest.mark.parametrize("error", [Busy("container 4f1 is paused"), NotFound("no container")])
async def test_a_container_that_does_not_run_is_inspected_again(probing: Probing, error: Exception):
    probing.answer(0)
    probing.watch_exec(startup_grace="0s", failures=1)
    await asyncio.sleep(1)
    probing.answer(error)
    await asyncio.sleep(60)
    assert probing.verdicts == [("alice", Verdict.GOOD)]
    assert set(probing.inspected) == {"alice"}
    assert not probing.notes.logged(events.ProbeUnknown)


async def test_removed_sandbox_clears_its_unknown_health(probing: Probing):
    probing.answer(Forbidden("denied"))
    probing.watch_exec()
    await asyncio.sleep(60)
    probing.prober.watch("alice", None)
    assert len(probing.notes.logged(events.ProbeKnown)) == 1


@real_time
@pytest.mark.parametrize("kind", ["http", "tcp"])
@pytest.mark.parametrize(
    ("gateway", "rootless", "unknown"),
    [
        # An address for documentation: no host has it.
        ("192.0.2.1", False, True),
        ("2001:db8::1", False, True),
        ("127.0.0.1", False, False),
        ("192.0.2.1", True, False),
        ("", False, False),
        ("not an address", False, True),
    ],
)
async def test_refused_connection_in_another_network_is_unknown(
    probing: Probing, kind: str, gateway: str, *, rootless: bool, unknown: bool
):
    probing.info = EngineInfo("Docker", "1", "1.41", "/", rootless=rootless, gateway=gateway)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refusing = target({"kind": kind, **PATIENT}, bound.getsockname()[1], run=0.0)
        probing.prober.watch("alice", refusing)
        async with asyncio.timeout(60):
            while not (health := probing.prober.health("alice")).unknown and health.bad < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert health.verdict is (Verdict.UNKNOWN if unknown else Verdict.UNHEALTHY)
    assert ("--network host" in health.unknown) == unknown
    assert health.reason == ("" if unknown else f"nothing listens on port {refusing.port}")


def test_refused_connection_on_a_reachable_address_counts():
    info = EngineInfo("Docker", "1", "1.41", "/", gateway="192.0.2.1")
    assert why_unreachable(info, "0.0.0.0")
    assert why_unreachable(info, "localhost")
    assert not why_unreachable(info, "198.51.100.7")
    assert not why_unreachable(info, "docker.example")


async def test_lost_engine_leaves_health_unknown(probing: Probing):
    probing.answer(0)
    probing.watch_exec(startup_grace="0s", failures=1)
    await asyncio.sleep(1)
    probing.answer(EngineUnavailable("gone"))
    probing.engine_answers = False
    await asyncio.sleep(600)
    assert not probing.notes.logged(events.ProbeUnknown)
    probing.engine_answers = True
    assert probing.verdicts == [("alice", Verdict.GOOD)]
    probing.answer(1)
    await asyncio.sleep(20)
    assert probing.verdicts[1:] == [("alice", Verdict.UNHEALTHY)]


@real_time
@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_out_of_files_leaves_health_unknown(probing: Probing, kind: str):
    async with listening(http("200 OK")) as port:
        probing.prober.watch("alice", target({"kind": kind, **PATIENT}, port, run=0.0))
        await probing.until(("alice", Verdict.GOOD))
        with none_left():
            await asyncio.sleep(0.5)
        await asyncio.sleep(0.2)
        assert probing.verdicts == [("alice", Verdict.GOOD)]


async def test_bad_response_without_an_engine_is_no_verdict(probing: Probing):
    probing.answer(0)
    probing.watch_exec()
    await asyncio.sleep(1)
    probing.engine_answers = False
    probing.answer(1)
    await asyncio.sleep(600)
    assert probing.verdicts == [("alice", Verdict.GOOD)]
    probing.engine_answers = True
    await asyncio.sleep(600)
    assert probing.verdicts == [("alice", Verdict.GOOD), ("alice", Verdict.UNHEALTHY)]


async def test_unwatched_key_is_not_probed(probing: Probing):
    probing.answer(0)
    probing.watch_exec()
    await asyncio.sleep(1)
    probing.prober.watch("alice", None)
    assert probing.prober.health("alice") == Health()
    asked = probing.verdicts.copy()
    await asyncio.sleep(600)
    assert probing.verdicts == asked
    assert not probing.prober._watched


async def test_new_run_starts_with_unknown_health(probing: Probing):
    probing.answer(0)
    probing.watch_exec()
    await asyncio.sleep(1)
    again = target({"kind": "exec", "command": ["check"]}, run=EPOCH + 1)
    probing.prober.watch("alice", again)
    assert probing.prober.health("alice") == Health("id", EPOCH + 1, EPOCH)
    await asyncio.sleep(1)
    assert probing.verdicts == [("alice", Verdict.GOOD)] * 2
