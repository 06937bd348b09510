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
from reconciler.core.model import Health, Verdict
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
from tests.simulation.stage import Notebook

real_time = pytest.mark.asyncio(loop_factories=["real"])
QUICK = {"interval": "0.05s", "timeout": "0.2s", "startup_grace": "0s", "failures": 2}
# However busy the machine is, an answer that comes is in time.
PATIENT = {**QUICK, "timeout": "60s"}


class Ward:
    """A prober, and the verdicts that it told."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.told: list[tuple[str, Verdict]] = []
        self.doubted: list[str] = []
        self.news = asyncio.Event()
        self.clock = SimulatedClock()
        self.engine_answers = True
        self.info: EngineInfo | None = None
        self.deaf = False
        self.notes = Notebook(asyncio.get_running_loop().time)
        self.prober = Prober(
            self.engine,
            on_verdict=self._hear,
            on_doubt=self.doubted.append,
            engine_answers=lambda: self.engine_answers,
            engine_info=lambda: self.info,
            recorder=self.notes,
            clock=self.clock,
        )

    def _hear(self, key: str, health: Health) -> None:
        if self.deaf:
            raise RuntimeError("of ours, with a secret")
        self.told.append((key, health.verdict))
        self.news.set()

    async def until(self, *told: tuple[str, Verdict]) -> None:
        while not set(told) <= set(self.told):
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
async def ward() -> AsyncIterator[Ward]:
    made = Ward()
    yield made
    await made.prober.close()


@asynccontextmanager
async def listening(reply: bytes | None) -> AsyncIterator[int]:
    """A server that gives one answer, or none at all, to whatever it is told."""

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
async def test_an_http_probe_goes_by_the_status(ward: Ward, status: str, verdict: Verdict):
    async with listening(http(status)) as port:
        ward.prober.watch("alice", target(QUICK, port, run=0.0))
        await ward.until(("alice", verdict))


@real_time
@pytest.mark.parametrize("proxied", [False, True])
async def test_a_tcp_probe_needs_a_connection_that_stays(ward: Ward, *, proxied: bool):
    async with listening(None) as port:
        tcp = replace(target({"kind": "tcp", **QUICK}, port, run=0.0), proxied=proxied)
        ward.prober.watch("alice", tcp)
        await ward.until(("alice", Verdict.GOOD))
    await ward.until(("alice", Verdict.UNHEALTHY))


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
    ward: Ward, chunks: list[bytes], end: str, verdict: Verdict
):
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines(chunks)
        if end == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with serving(serve, asyncio.start_server, "127.0.0.1", 0) as server:
        tcp = target({"kind": "tcp", **PATIENT}, server.sockets[0].getsockname()[1], run=0.0)
        ward.prober.watch("alice", replace(tcp, proxied=True))
        await ward.until(("alice", verdict))
    assert ward.told[0] == ("alice", verdict if verdict is Verdict.GOOD else Verdict.BAD)


@real_time
@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_ports_published_on_every_ipv6_address_are_asked_on_the_loopback(
    ward: Ward, kind: str
):
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http("200 OK"))

    async with serving(serve, asyncio.start_server, "::1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        desired = builders.desired(health={"kind": kind, **QUICK})
        container = builders.container(ports={8000: port}, started_at=0.0)
        ward.prober.watch("alice", target_of(desired, container, "::", EPOCH))
        await ward.until(("alice", Verdict.GOOD))


@real_time
async def test_one_that_hangs_delays_no_other_and_is_unhealthy_in_the_end(ward: Ward):
    async with listening(None) as hangs, listening(http("200 OK")) as well:
        ward.prober.watch("alice", target(PATIENT, hangs, run=0.0))
        ward.prober.watch("bob", target(PATIENT, well, run=0.0))
        await ward.until(("bob", Verdict.GOOD))
        assert ward.told == [("bob", Verdict.GOOD)]
        ward.prober.watch("alice", target(QUICK, hangs, run=0.0))
        await ward.until(("alice", Verdict.UNHEALTHY))
        assert ward.prober.health("alice").reason == "no answer within 0.2 s"


@real_time
@pytest.mark.parametrize("path", ["/%zz", "//", "/é?#", "/@evil:80/"])
async def test_no_path_ends_the_probing(ward: Ward, path: str):
    async with listening(http("500 No")) as port:
        ward.prober.watch("alice", target({**QUICK, "path": path}, port, run=0.0))
        await ward.until(("alice", Verdict.UNHEALTHY))


@real_time
async def test_an_answer_that_only_trickles_ends_with_the_timeout(ward: Ward):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        for byte in itertools.cycle(b"HTTP/1.1 100 C\r\n\r\n"):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    async with serving(serve, asyncio.start_server, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        ward.prober.watch("alice", target(QUICK, port, run=0.0))
        await ward.until(("alice", Verdict.UNHEALTHY))
    assert ward.prober.health("alice").reason == "no answer within 0.2 s"


@real_time
async def test_a_cookie_does_not_end_the_probing(ward: Ward):
    answers = iter([b"HTTP/1.1 200 OK\r\nSet-Cookie: a\xb4=b\r\n\r\n"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert b"cookie" not in request.lower()
        writer.write(next(answers, http("500 No")))

    async with serving(serve, asyncio.start_server, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        ward.prober.watch("alice", target(PATIENT, port, run=0.0))
        await ward.until(("alice", Verdict.GOOD), ("alice", Verdict.UNHEALTHY))
    assert ward.prober.health("alice").reason == "HTTP 500 on /health"


async def test_a_defect_is_a_bad_answer_and_does_not_end_the_probing(ward: Ward):
    ward.answer(RuntimeError("of ours, with a secret"))
    ward.watch_exec(startup_grace="0s", failures=2)
    await asyncio.sleep(60)
    assert ward.told == [("alice", Verdict.BAD), ("alice", Verdict.UNHEALTHY)]
    reason = ward.prober.health("alice").reason
    assert reason == "the answer cannot be understood (RuntimeError)"
    ward.answer(0)
    await asyncio.sleep(60)
    assert ward.told[-1] == ("alice", Verdict.GOOD)


async def test_a_defect_outside_the_probe_is_logged_and_probing_starts_again(ward: Ward):
    ward.answer(0)
    ward.deaf = True
    ward.watch_exec()
    await asyncio.sleep(60)
    assert ward.notes.said(events.TaskFailed)[0]["task"] == "probe alice"
    ward.deaf = False
    await asyncio.sleep(60)
    assert ward.told == [("alice", Verdict.GOOD)]


async def test_sandboxes_made_together_are_probed_apart(ward: Ward):
    times: list[float] = []

    async def run_in(*_: object) -> int:
        times.append(asyncio.get_running_loop().time())
        return 0

    ward.engine.run_in = run_in
    for number in range(100):
        ward.watch_exec(f"pool-{number}")
    await asyncio.sleep(1000)
    settled = [at for at in times if at >= 900]
    assert len(settled) == pytest.approx(1000, abs=10)
    assert max(Counter(map(int, settled)).values()) <= 25


async def test_in_the_startup_grace_nothing_is_unhealthy(ward: Ward):
    ward.answer(1)
    ward.watch_exec(startup_grace="60s", failures=3)
    await asyncio.sleep(59)
    assert ward.told == [("alice", Verdict.BAD)]
    await asyncio.sleep(40)
    assert ward.told[1:] == [("alice", Verdict.UNHEALTHY)]
    assert ward.prober.health("alice").reason == "check ended with exit code 1"


async def test_a_start_is_told_soon_though_the_interval_is_long(ward: Ward):
    ward.answer(1)
    ward.watch_exec(interval="60s")
    await asyncio.sleep(1)
    ward.answer(0)
    await asyncio.sleep(2)
    assert ward.told[-1] == ("alice", Verdict.GOOD)


async def test_a_single_bad_answer_of_one_that_was_well_is_noise(ward: Ward):
    ward.answer(0)
    ward.watch_exec(startup_grace="0s", failures=2)
    await asyncio.sleep(1)
    ward.answer(1)
    await asyncio.sleep(10.5)
    ward.answer(0)
    await asyncio.sleep(60)
    assert ward.told == [("alice", Verdict.GOOD)]


@pytest.mark.parametrize("error", [CommandTimeout("it hangs"), Refused("no such program")])
async def test_a_command_that_cannot_run_is_a_bad_answer(ward: Ward, error: Exception):
    ward.answer(error)
    ward.watch_exec(startup_grace="0s", failures=1)
    await asyncio.sleep(1)
    assert ward.prober.health("alice").verdict is Verdict.UNHEALTHY
    assert str(error) in ward.prober.health("alice").reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Forbidden("denied by rule 17"), "EXEC=1"),
        (EngineTimeout("POST /containers/4f1 hangs"), "see whether it is stuck"),
        (EngineUnavailable("gone"), "cannot be asked"),
        (EngineUnavailable("x: may open no more files"), "cannot be asked"),
        (EngineError("internal error"), "internal error"),
    ],
)
async def test_what_cannot_be_asked_is_unknown(ward: Ward, error: Exception, words: str):
    ward.answer(0)
    for key in ("alice", "bob"):
        ward.watch_exec(key, startup_grace="0s", failures=1)
    ward.answer(error)
    ward.watch_exec("carol", startup_grace="0s", failures=1)
    ward.answer(0)
    await asyncio.sleep(1)
    ward.answer(error)
    await asyncio.sleep(600)
    assert sorted(ward.told) == [(key, Verdict.GOOD) for key in ("alice", "bob", "carol")]
    assert words in ward.prober.health("alice").unknown
    (said,) = ward.notes.said(events.ProbeUnknown)
    assert words in said["cause"]
    ward.answer(0)
    await asyncio.sleep(20)
    assert ward.prober.health("alice").unknown == ""
    assert len(ward.notes.said(events.ProbeKnown)) == 1
    ward.answer(1)
    await asyncio.sleep(20)
    assert ("alice", Verdict.UNHEALTHY) in ward.told


@pytest.mark.parametrize("error", [Busy("container 4f1 is paused"), NotFound("no container")])
async def test_a_container_that_does_not_run_is_inspected_again(ward: Ward, error: Exception):
    ward.answer(0)
    ward.watch_exec(startup_grace="0s", failures=1)
    await asyncio.sleep(1)
    ward.answer(error)
    await asyncio.sleep(60)
    assert ward.told == [("alice", Verdict.GOOD)]
    assert set(ward.doubted) == {"alice"}
    assert not ward.notes.said(events.ProbeUnknown)


async def test_a_sandbox_that_goes_takes_its_unknown_health_along(ward: Ward):
    ward.answer(Forbidden("denied"))
    ward.watch_exec()
    await asyncio.sleep(60)
    ward.prober.watch("alice", None)
    assert len(ward.notes.said(events.ProbeKnown)) == 1


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
async def test_a_refusal_in_another_network_than_the_engines_is_unknown(
    ward: Ward, kind: str, gateway: str, *, rootless: bool, unknown: bool
):
    ward.info = EngineInfo("Docker", "1", "1.41", "/", rootless=rootless, gateway=gateway)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        refusing = target({"kind": kind, **PATIENT}, bound.getsockname()[1], run=0.0)
        ward.prober.watch("alice", refusing)
        async with asyncio.timeout(60):
            while not (health := ward.prober.health("alice")).unknown and health.bad < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert health.verdict is (Verdict.UNKNOWN if unknown else Verdict.UNHEALTHY)
    assert ("--network host" in health.unknown) == unknown
    assert health.reason == ("" if unknown else f"nothing listens on port {refusing.port}")


def test_a_refusal_at_an_address_that_others_reach_is_real():
    info = EngineInfo("Docker", "1", "1.41", "/", gateway="192.0.2.1")
    assert why_unreachable(info, "0.0.0.0")
    assert why_unreachable(info, "localhost")
    assert not why_unreachable(info, "198.51.100.7")
    assert not why_unreachable(info, "docker.example")


async def test_an_engine_that_is_lost_says_nothing_of_the_sandbox(ward: Ward):
    ward.answer(0)
    ward.watch_exec(startup_grace="0s", failures=1)
    await asyncio.sleep(1)
    ward.answer(EngineUnavailable("gone"))
    ward.engine_answers = False
    await asyncio.sleep(600)
    assert not ward.notes.said(events.ProbeUnknown)
    ward.engine_answers = True
    assert ward.told == [("alice", Verdict.GOOD)]
    ward.answer(1)
    await asyncio.sleep(20)
    assert ward.told[1:] == [("alice", Verdict.UNHEALTHY)]


@real_time
@pytest.mark.parametrize("kind", ["http", "tcp"])
async def test_without_a_descriptor_nothing_is_known(ward: Ward, kind: str):
    async with listening(http("200 OK")) as port:
        ward.prober.watch("alice", target({"kind": kind, **PATIENT}, port, run=0.0))
        await ward.until(("alice", Verdict.GOOD))
        with none_left():
            await asyncio.sleep(0.5)
        await asyncio.sleep(0.2)
        assert ward.told == [("alice", Verdict.GOOD)]


async def test_while_the_engine_cannot_be_asked_a_bad_answer_is_no_verdict(ward: Ward):
    ward.answer(0)
    ward.watch_exec()
    await asyncio.sleep(1)
    ward.engine_answers = False
    ward.answer(1)
    await asyncio.sleep(600)
    assert ward.told == [("alice", Verdict.GOOD)]
    ward.engine_answers = True
    await asyncio.sleep(600)
    assert ward.told == [("alice", Verdict.GOOD), ("alice", Verdict.UNHEALTHY)]


async def test_what_is_not_watched_is_not_asked(ward: Ward):
    ward.answer(0)
    ward.watch_exec()
    await asyncio.sleep(1)
    ward.prober.watch("alice", None)
    assert ward.prober.health("alice") == Health()
    asked = ward.told.copy()
    await asyncio.sleep(600)
    assert ward.told == asked
    assert not ward.prober._watched


async def test_another_run_is_judged_anew(ward: Ward):
    ward.answer(0)
    ward.watch_exec()
    await asyncio.sleep(1)
    again = target({"kind": "exec", "command": ["check"]}, run=EPOCH + 1)
    ward.prober.watch("alice", again)
    assert ward.prober.health("alice") == Health("id", EPOCH + 1, EPOCH)
    await asyncio.sleep(1)
    assert ward.told == [("alice", Verdict.GOOD)] * 2
