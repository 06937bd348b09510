"""Health probes: one task a sandbox, so that one that hangs delays no other."""

from __future__ import annotations

import asyncio
import zlib
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    is_out_of_files,
)
from reconciler.core.model import Health, Verdict
from reconciler.core.policy import fold
from reconciler.core.spec import HealthSpec, ProbeKind
from reconciler.loop.probe_client import Peer, Question, Unasked, ask_http, ask_tcp
from reconciler.service.events import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.model import Container, Desired
    from reconciler.engine.protocol import Engine
    from reconciler.loop.reporter import Reporter

_EAGER_FIRST: Final = 0.1
_EAGER_FACTOR: Final = 1.3
_JITTER: Final = 0.1
_AFTER_DEFECT: Final = 5.0
_REASON_LENGTH: Final = 200


@dataclass(frozen=True, slots=True)
class Target:
    """One run of a container, and how to ask it. ``port`` is on ``address``; 0 for exec probes."""

    container_id: str
    started_at: float
    spec: HealthSpec
    address: str
    port: int

    @property
    def peer(self) -> Peer:
        """Where it listens."""
        return Peer(self.address, self.port)

    @property
    def question(self) -> Question:
        """What an http probe asks."""
        spec = self.spec
        return Question(spec.path, spec.headers, spec.host, tls=spec.scheme == "https")


@dataclass(slots=True)
class _Watched:
    target: Target
    health: Health
    task: asyncio.Task[None]


class Prober:
    """Keeps the health of what it is told to watch; says which key's verdict changed.

    While ``engine_answers`` does not hold, a bad answer is no verdict: a command cannot be run and
    published ports are gone, and the sandboxes may be as well as ever.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_verdict: Callable[[str, Health], None],
        engine_answers: Callable[[], bool],
        reporter: Reporter,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._reporter = reporter
        self._on_verdict = on_verdict
        self._engine_answers = engine_answers
        self._clock = clock
        self._watched: dict[str, _Watched] = {}

    def health(self, key: str) -> Health:
        """What the probes say of the key's present run."""
        watched = self._watched.get(key)
        return watched.health if watched else Health()

    def watch(self, key: str, target: Target | None) -> None:
        """Probe this run from now on, and no other; None: probe nothing."""
        watched = self._watched.get(key)
        if watched is not None and watched.target == target:
            return
        if watched is not None:
            self._watched.pop(key).task.cancel()
        if target is not None:
            # In a context of its own: it outlives the pass that it is begun in.
            task = asyncio.create_task(
                self._supervise(key, target),
                name=f"probe {key}",
                context=Context(),
            )
            fresh = Health(target.container_id, target.started_at)
            self._watched[key] = _Watched(target, fresh, task)

    async def close(self) -> None:
        """Probe nothing more."""
        tasks = [watched.task for watched in self._watched.values()]
        self._watched.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _supervise(self, key: str, target: Target) -> None:
        """Probe until cancelled; a defect in the probing is logged and it starts again."""
        while True:
            try:
                await self._probe_until_cancelled(key, target)
            except Exception as error:  # noqa: BLE001 - a task that ends silently is the worst
                self._reporter.complain(
                    Event.TASK_FAILED,
                    about=f"probe {key}",
                    task=f"probe {key}",
                    error=type(error).__name__,
                )
                await asyncio.sleep(_AFTER_DEFECT)

    async def _probe_until_cancelled(self, key: str, target: Target) -> None:
        share = zlib.crc32(key.encode()) / (1 << 32)
        eager = _EAGER_FIRST
        while True:
            health = await self._probe_once(key, target)
            eager = min(eager * _EAGER_FACTOR, target.spec.interval)
            if health.verdict is Verdict.GOOD or health.bad:
                await asyncio.sleep(_until_turn(share, target.spec.interval))
            else:
                await asyncio.sleep(eager * (1 - _JITTER * share))

    async def _probe_once(self, key: str, target: Target) -> Health:
        try:
            bad = await self._probe(target)
        except Unasked:
            return self.health(key)
        return self._learn(key, target, bad)

    def _learn(self, key: str, target: Target, bad: str | None) -> Health:
        watched = self._watched.get(key)
        if watched is None or watched.target != target:
            return Health()
        former = watched.health
        if bad is not None and not self._engine_answers():
            return former
        watched.health = fold(former, target.spec, bad, self._clock())
        if watched.health.verdict is not former.verdict:
            self._on_verdict(key, watched.health)
        return watched.health

    async def _probe(self, target: Target) -> str | None:
        """None where the sandbox is well, else what is wrong.

        Raises:
            Unasked: nothing is known.
        """
        try:
            async with asyncio.timeout(target.spec.timeout):
                return await self._ask(target)
        except TimeoutError:
            return f"no answer within {target.spec.timeout:g} s"
        except EngineError as error:
            if _says_nothing(error):
                raise Unasked(str(error)) from error
            return (str(error) or type(error).__name__)[:_REASON_LENGTH]
        except Unasked:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a peer provokes is a bad answer
            return f"the answer cannot be understood ({type(error).__name__})"

    async def _ask(self, target: Target) -> str | None:
        match target.spec.kind:
            case ProbeKind.HTTP:
                return await ask_http(target.peer, target.question)
            case ProbeKind.TCP:
                return await ask_tcp(target.peer)
            case ProbeKind.EXEC:
                return await self._ask_exec(target)

    async def _ask_exec(self, target: Target) -> str | None:
        command, limit = target.spec.command, target.spec.timeout
        code = await self._engine.run_in(target.container_id, command, limit)
        return None if code == 0 else f"{command[0]} ended with exit code {code}"


def target_of(desired: Desired, container: Container, address: str) -> Target | None:
    """How a running container is asked; None where it is not to be asked.

    ``address`` is where host ports are published.
    """
    health = desired.spec.health
    if health is None or container.started_at is None:
        return None
    port = 0
    if health.kind is not ProbeKind.EXEC:
        named = {p.name: p.container_port for p in desired.spec.ports}
        inside = named[health.port] if health.port else desired.spec.ports[0].container_port
        port = container.ports.get(inside, inside)
    host = address if container.ports else "127.0.0.1"
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a lookup
    return Target(container.id, container.started_at, health, reachable, port)


def _says_nothing(error: Exception) -> bool:
    lost = isinstance(error, EngineUnavailable) and not isinstance(error, EngineTimeout)
    return lost or is_out_of_files(error)


def _until_turn(share: float, interval: float) -> float:
    """Seconds to the key's turn, at least half an interval away.

    Turns are ``interval`` apart, and a key's ``share`` of an interval, from 0 to 1, places them: so
    sandboxes that were made together are not probed together.
    """
    now = asyncio.get_running_loop().time()
    seconds = interval - (now - share * interval) % interval
    return seconds if seconds >= interval / 2 else seconds + interval
