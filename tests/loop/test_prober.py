import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from reconciler.core.errors import EngineError, EngineTimeout, EngineUnavailable
from reconciler.core.model import Health, Verdict
from reconciler.core.spec import HealthSpec
from reconciler.loop.prober import Prober, Target, target_of
from reconciler.service.events import Event
from tests.core import builders
from tests.fakes.engine import FakeEngine
from tests.harness.descriptors import none_left
from tests.harness.serving import say_nothing, serving
from tests.loop.simulated import EPOCH, WallClock
from tests.loop.stage import Notebook

real_time = pytest.mark.asyncio(loop_factories=["real"])
QUICK = {"interval": "0.05s", "timeout": "0.2s", "startup_grace": "0s", "failures": 2}
# However busy the machine is, an answer that comes is in time.
PATIENT = {**QUICK, "timeout": "60s"}


class Ward:
    """A prober, and the verdicts that it told."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.told: list[tuple[str, Verdict]] = []
        self.news = asyncio.Event()
        self.clock = WallClock()
        self.engine_answers = True
        self.deaf = False
        self.notes = Notebook(asyncio.get_running_loop().time)
        self.prober = Prober(
            self.engine,
            on_verdict=self._hear,
            engine_answers=lambda: self.engine_answers,
            reporter=self.notes,
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
    return Target("id", run, HealthSpec.model_validate(spec), "127.0.0.1", port)


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
async def test_a_tcp_probe_asks_for_a_connection_alone(ward: Ward):
    async with listening(None) as port:
        ward.prober.watch("alice", target({"kind": "tcp", **QUICK}, port, run=0.0))
        await ward.until(("alice", Verdict.GOOD))
    await ward.until(("alice", Verdict.UNHEALTHY))


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
        ward.prober.watch("alice", target_of(desired, container, "::"))
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
    assert ward.notes.said(Event.TASK_FAILED) == [{"task": "probe alice", "error": "RuntimeError"}]
    ward.deaf = False
    ward.answer(1)
    await asyncio.sleep(60)
    assert ward.told == [("alice", Verdict.UNHEALTHY)]


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


@pytest.mark.parametrize("error", [EngineTimeout("hangs"), EngineError("no such program")])
async def test_an_exec_that_cannot_be_asked_is_a_bad_answer(ward: Ward, error: Exception):
    ward.answer(error)
    ward.watch_exec(startup_grace="0s", failures=1)
    await asyncio.sleep(1)
    assert ward.prober.health("alice").verdict is Verdict.UNHEALTHY
    assert str(error) in ward.prober.health("alice").reason


async def test_an_engine_that_is_lost_says_nothing_of_the_sandbox(ward: Ward):
    ward.answer(0)
    ward.watch_exec(startup_grace="0s", failures=1)
    await asyncio.sleep(1)
    ward.answer(EngineUnavailable("gone"))
    await asyncio.sleep(600)
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
    assert ward.prober.health("alice") == Health("id", EPOCH + 1)
    await asyncio.sleep(1)
    assert ward.told == [("alice", Verdict.GOOD)] * 2
