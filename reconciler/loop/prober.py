"""Health probes: one task a sandbox, so that one that hangs delays no other."""

from __future__ import annotations

import asyncio
import random
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx

from reconciler.core.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    is_out_of_files,
)
from reconciler.core.model import Health, Verdict
from reconciler.core.policy import fold
from reconciler.core.spec import HealthSpec, ProbeKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.model import Container, Desired
    from reconciler.engine.protocol import Engine

_EAGER_FIRST: Final = 0.1
_EAGER_FACTOR: Final = 1.3
_JITTER: Final = 0.1
_GOOD_STATUS: Final = range(200, 400)
_REASON_LENGTH: Final = 200


@dataclass(frozen=True, slots=True)
class Target:
    """One run of a container, and how to ask it. ``port`` is on ``address``; 0 for exec probes."""

    container_id: str
    started_at: float
    spec: HealthSpec
    address: str
    port: int


@dataclass(slots=True)
class _Watched:
    target: Target
    health: Health
    task: asyncio.Task[None]


class _Unasked(Exception):
    """It cannot be asked now, which says nothing about how it is."""


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
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
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
                self._probe_for_ever(key, target),
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

    async def _probe_for_ever(self, key: str, target: Target) -> None:
        # A client of its own: a shared pool is searched for every request, and costs more.
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:  # noqa: S501 - loopback
            eager = _EAGER_FIRST
            while True:
                health = await self._ask_once(client, key, target)
                eager = min(eager * _EAGER_FACTOR, target.spec.interval)
                well = health.verdict is Verdict.GOOD
                pause = target.spec.interval if well or health.bad else eager
                await asyncio.sleep(pause * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311

    async def _ask_once(self, client: httpx.AsyncClient, key: str, target: Target) -> Health:
        try:
            bad = await self._probe(client, target)
        except _Unasked:
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

    async def _probe(self, client: httpx.AsyncClient, target: Target) -> str | None:
        """None where the sandbox is well, else what is wrong.

        Raises:
            _Unasked: nobody knows.
        """
        try:
            async with asyncio.timeout(target.spec.timeout):
                return await self._ask(client, target)
        except TimeoutError:
            return f"no answer within {target.spec.timeout:g} s"
        except (OSError, httpx.HTTPError, httpx.InvalidURL, EngineError) as error:
            if _says_nothing(error):
                raise _Unasked from error
            return (str(error) or type(error).__name__)[:_REASON_LENGTH]

    async def _ask(self, client: httpx.AsyncClient, target: Target) -> str | None:
        match target.spec.kind:
            case ProbeKind.HTTP:
                return await _ask_http(client, target)
            case ProbeKind.TCP:
                return await _ask_tcp(target)
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


async def _ask_http(client: httpx.AsyncClient, target: Target) -> str | None:
    host = f"[{target.address}]" if ":" in target.address else target.address
    url = f"http://{host}:{target.port}{target.spec.path}"
    async with client.stream("GET", url, timeout=target.spec.timeout) as response:
        status = response.status_code
    return None if status in _GOOD_STATUS else f"HTTP {status} on {target.spec.path}"


async def _ask_tcp(target: Target) -> str | None:
    _, writer = await asyncio.open_connection(target.address, target.port)
    writer.close()
    return None
