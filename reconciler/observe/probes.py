"""Health probes: one task for each sandbox, so that one that hangs delays no other."""

from __future__ import annotations

import asyncio
import zlib
from collections import defaultdict
from contextvars import Context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import (
    OUT_OF_FILES,
    Busy,
    CommandTimeout,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Forbidden,
    NotFound,
    Refused,
    is_out_of_files,
)
from reconciler.core.model import CheckState, Health, Verdict
from reconciler.core.policy import fold
from reconciler.core.spec import HealthSpec, ProbeKind
from reconciler.engine.reachability import LOOPBACK, why_unreachable
from reconciler.observe.probe_client import Peer, Question, Unasked, ask_http, ask_tcp
from reconciler.telemetry import events
from reconciler.telemetry.redact import redactor
from reconciler.telemetry.supervision import supervise

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.model import Check, Container, Desired
    from reconciler.engine.protocol import Engine, EngineInfo
    from reconciler.telemetry.recorder import Recorder

_EAGER_FIRST: Final = 0.1
_EAGER_FACTOR: Final = 1.3
_JITTER: Final = 0.1
# Seconds. An engine's proxy takes under 1 ms to close a connection; a busy host may delay it.
_SETTLES: Final = 1.0
_REASON_LENGTH: Final = 200
_CHECK_FAILS: Final = "the image's HEALTHCHECK fails"
_NO_CHECK: Final = (
    "its image has no HEALTHCHECK for `health: {kind: docker}` to use: choose another kind, or set "
    "`health: null`"
)
# Seconds between two looks at a check that passes.
_CHECK_AGAIN: Final = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """One run of a container, and how to ask it. ``port`` is on ``address``; 0 for a probe without.

    ``seen_at`` is when the daemon first saw the run, in observed seconds. ``proxied``: the port is
    published, so the engine's proxy may be what accepts connections.
    """

    container_id: str
    started_at: float | None
    seen_at: float
    spec: HealthSpec
    address: str
    port: int
    proxied: bool = False

    @property
    def peer(self) -> Peer:
        """Where it listens."""
        return Peer(self.address, self.port)

    @property
    def question(self) -> Question:
        """What an http probe asks."""
        spec = self.spec
        return Question(spec.path, spec.headers, spec.host, tls=spec.scheme == "https")

    @property
    def settles(self) -> float:
        """Seconds that a connection must stay open before it shows that something listens."""
        return min(self.spec.timeout / 2, _SETTLES) if self.proxied else 0.0


@dataclass(slots=True)
class _Watched:
    """``seen`` is the last result of the image's own check; ``stale``: its run began unhealthy."""

    target: Target
    health: Health
    task: asyncio.Task[None]
    seen: str | None = None
    stale: bool = False


class Prober:
    """Keeps the health of what it watches, and reports each key whose verdict changed.

    ``on_doubt`` gets a key whose container the engine says is not running: an event was lost.
    A probe that cannot be made says nothing: the verdict stays, and the cause is in the health.
    While ``engine_answers`` does not hold, a bad answer is no verdict either: published ports are
    gone, and the sandboxes may be well. ``engine_info`` is what the engine last said of itself.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_verdict: Callable[[str, Health], None],
        on_doubt: Callable[[str], None],
        engine_answers: Callable[[], bool],
        engine_info: Callable[[], EngineInfo | None],
        recorder: Recorder,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._on_verdict = on_verdict
        self._on_doubt = on_doubt
        self._engine_answers = engine_answers
        self._engine_info = engine_info
        self._recorder = recorder
        self._clock = clock
        self._watched: dict[str, _Watched] = {}
        self._obstacles = _Obstacles(recorder)

    def health(self, key: str) -> Health:
        """The probes' findings about the key's present run."""
        watched = self._watched.get(key)
        return watched.health if watched else Health()

    def watch(self, key: str, target: Target | None) -> None:
        """Probe this run from now on, and no other; None: probe nothing."""
        watched = self._watched.get(key)
        if watched is not None and watched.target == target:
            return
        if watched is not None:
            self._watched.pop(key).task.cancel()
            self._obstacles.clear(key)
        if target is not None:
            # In a new context: the task outlives the pass that starts it.
            docker = target.spec.kind is ProbeKind.DOCKER
            probe = self._follow_check if docker else self._probe_until_cancelled
            task = asyncio.create_task(
                supervise(f"probe {key}", lambda: probe(key, target), self._recorder),
                name=f"probe {key}",
                context=Context(),
            )
            fresh = Health(target.container_id, target.started_at, target.seen_at)
            self._watched[key] = _Watched(target, fresh, task)

    def report(self, key: str, check: Check | None) -> None:
        """Take in the image's own check of a running container, where that is its probe.

        The engine goes on with a check while a container is paused, and it fails then. So a
        container that is unhealthy when it is first seen to run is not restarted before two more
        results failed.
        """
        watched = self._watched.get(key)
        if watched is None or watched.target.spec.kind is not ProbeKind.DOCKER:
            return
        if check is None:
            self._learn(key, watched, None, _NO_CHECK)
        elif check.state is CheckState.HEALTHY:
            watched.stale = False
            self._learn(key, watched, None, "")
        elif check.state is CheckState.STARTING:
            self._await(key, watched, "the image's HEALTHCHECK has not passed yet")
        elif watched.seen is None:
            watched.stale = True
            self._await(key, watched, _CHECK_FAILS)
        elif check.result != watched.seen:
            self._learn(key, watched, _CHECK_FAILS, "")
        watched.seen = check.result if check else None

    def _await(self, key: str, watched: _Watched, reason: str) -> None:
        """No verdict yet, for the reason."""
        former = watched.health
        if former.verdict is Verdict.UNKNOWN:
            health = replace(former, verdict=Verdict.BAD, since=self._clock(), reason=reason)
            self._on_verdict(key, health)
            watched.health = health

    async def _follow_check(self, key: str, target: Target) -> None:
        """Have the container inspected now and then: an event may be lost, or not come at all."""
        while True:
            good = self.health(key).verdict is Verdict.GOOD
            await asyncio.sleep(max(target.spec.interval, _CHECK_AGAIN if good else 0.0))
            self._on_doubt(key)

    async def close(self) -> None:
        """Probe nothing more."""
        tasks = [watched.task for watched in self._watched.values()]
        self._watched.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        bad, unasked, stopped = None, "", False
        try:
            bad = await self._probe(target)
        except (Busy, NotFound):
            stopped = True
        except Unasked as error:
            unasked = str(error)
        watched = self._watched.get(key)
        if watched is None or watched.target != target:
            return Health()
        if stopped:
            self._on_doubt(key)
        # That an engine is lost is reported elsewhere, once.
        elif (bad is None and not unasked) or self._engine_answers():
            self._learn(key, watched, bad, unasked)
        return watched.health

    def _learn(self, key: str, watched: _Watched, bad: str | None, unasked: str) -> None:
        former = watched.health
        if unasked:
            self._obstacles.meet(key, unasked)
            watched.health = replace(former, unknown=unasked)
            return
        self._obstacles.clear(key)
        spec = watched.target.spec
        if spec.kind is ProbeKind.DOCKER:
            # The engine has counted the image's own retries.
            spec = spec.model_copy(update={"failures": 1 + watched.stale, "successes": 1})
        health = fold(replace(former, unknown=""), spec, bad, self._clock())
        if health.verdict is not former.verdict:
            self._on_verdict(key, health)
        watched.health = health

    async def _probe(self, target: Target) -> str | None:
        """None where the sandbox is well, else what is wrong.

        Raises:
            Busy, NotFound: the container is not running.
            Unasked: nothing is known.
        """
        limit = target.spec.timeout
        try:
            if target.spec.kind is ProbeKind.EXEC:
                return await self._ask_exec(target)
            async with asyncio.timeout(limit):
                if target.spec.kind is ProbeKind.TCP:
                    return await ask_tcp(target.peer, target.settles)
                return await ask_http(target.peer, target.question)
        except TimeoutError:
            return f"no answer within {limit:g} s"
        except ConnectionRefusedError as error:
            info = self._engine_info()
            if info and (why := why_unreachable(info, target.address)):
                raise Unasked(why) from error
            return f"nothing listens on port {target.port}"
        except (Unasked, Busy, NotFound):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a peer provokes is a bad answer
            return f"the answer cannot be understood ({type(error).__name__})"

    async def _ask_exec(self, target: Target) -> str | None:
        command, limit = target.spec.command, target.spec.timeout
        try:
            code = await self._engine.run_in(target.container_id, command, limit)
        except (CommandTimeout, Refused) as error:
            return redactor.clean(str(error), _REASON_LENGTH)
        except (Busy, NotFound):
            raise
        except EngineError as error:
            raise Unasked(_why_not_run(error)) from error
        return None if code == 0 else f"{command[0]} ended with exit code {code}"


class _Obstacles:
    """Why sandboxes cannot be probed. Each cause is logged once, however many it concerns."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._causes: dict[str, str] = {}
        self._keys: defaultdict[str, set[str]] = defaultdict(set)

    def meet(self, key: str, cause: str) -> None:
        """The key cannot be probed now."""
        if self._causes.get(key) == cause:
            return
        self.clear(key)
        first = not self._keys[cause]
        self._causes[key] = cause
        self._keys[cause].add(key)
        self._recorder.note(events.ProbeUnknown(sandbox=key, cause=cause))
        if first:
            self._recorder.complain(events.ProbeUnknown(sandbox=key, cause=cause), about=cause)

    def clear(self, key: str) -> None:
        """The key is probed again, or needs no probe any more."""
        cause = self._causes.pop(key, None)
        if cause is None:
            return
        self._recorder.note(events.ProbeKnown(sandbox=key, cause=cause))
        self._keys[cause].discard(key)
        if not self._keys[cause]:
            del self._keys[cause]
            self._recorder.resolve(events.ProbeUnknown, about=cause)
            self._recorder.log(events.ProbeKnown(sandbox=key, cause=cause))


def target_of(
    desired: Desired, container: Container, address: str, seen_at: float
) -> Target | None:
    """How a running container is asked; None where it is not to be asked.

    ``address`` is where host ports are published; ``seen_at`` is when the daemon first saw the run.
    """
    health = desired.spec.health
    if health is None:
        return None
    port = 0
    if health.kind in {ProbeKind.HTTP, ProbeKind.TCP}:
        named = {p.name: p.container_port for p in desired.spec.ports}
        inside = named[health.port] if health.port else desired.spec.ports[0].container_port
        port = container.ports.get(inside, inside)
    host = address if container.ports else "127.0.0.1"
    return Target(
        container.id,
        container.started_at,
        seen_at,
        health,
        LOOPBACK.get(host, host),
        port,
        proxied=bool(container.ports),
    )


def _why_not_run(error: EngineError) -> str:
    """Why a command was not run: one text for one cause, in every sandbox."""
    if is_out_of_files(error):
        return OUT_OF_FILES
    match error:
        case EngineTimeout():
            return "the engine does not run the probe's command in time: see whether it is stuck"
        case EngineUnavailable():
            return "the engine cannot be asked to run the probe's command"
        case Forbidden():
            return (
                "commands in containers are forbidden here: allow them in the proxy before the "
                "engine (POST=1, EXEC=1), or use an http or tcp probe"
            )
        case _:
            cause = redactor.clean(str(error), _REASON_LENGTH)
            return f"the engine does not run the probe's command: {cause}"


def _until_turn(share: float, interval: float) -> float:
    """Seconds to the key's turn, at least half an interval away.

    Turns are ``interval`` apart, and a key's ``share`` of an interval, from 0 to 1, places them: so
    sandboxes that were made together are not probed together.
    """
    now = asyncio.get_running_loop().time()
    seconds = interval - (now - share * interval) % interval
    return seconds if seconds >= interval / 2 else seconds + interval
