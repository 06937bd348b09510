"""Health probes: one task for each sandbox, so that a slow one delays no other."""

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
from reconciler.core.health import Health, Verdict, fold
from reconciler.core.observed import CheckState
from reconciler.core.spec import HealthSpec, ProbeKind
from reconciler.engine.reachability import LOOPBACK, why_unreachable
from reconciler.observe.probe_client import (
    HttpRequest,
    Peer,
    ProbeImpossible,
    probe_http,
    probe_tcp,
)
from reconciler.telemetry import events
from reconciler.telemetry.redact import redactor
from reconciler.telemetry.supervision import supervise

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.observed import Check, Container
    from reconciler.core.snapshot import Desired
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
# Seconds between two inspections of a HEALTHCHECK that passes.
_CHECK_POLL: Final = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """One run of a container and where to probe it. ``port`` is 0 for a probe that needs none.

    ``seen_at`` is when the daemon first saw the run, in observed seconds. ``proxied``: the port is
    published, so it may be the engine's proxy that accepts connections.
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
        """The address to connect to."""
        return Peer(self.address, self.port)

    @property
    def request(self) -> HttpRequest:
        """The request of an http probe."""
        spec = self.spec
        return HttpRequest(spec.path, spec.headers, spec.host, tls=spec.scheme == "https")

    @property
    def settles(self) -> float:
        """Seconds that a connection must stay open to prove that something listens."""
        return min(self.spec.timeout / 2, _SETTLES) if self.proxied else 0.0


@dataclass(slots=True)
class _Watched:
    """One probed run.

    ``seen`` is the last result of the image's HEALTHCHECK. ``stale``: it was unhealthy already when
    it was first seen.
    """

    target: Target
    health: Health
    task: asyncio.Task[None]
    seen: str | None = None
    stale: bool = False


class Prober:
    """Probes running sandboxes, keeps their health and reports changed verdicts.

    A probe that cannot be made proves nothing: the verdict stays, and the health has the cause.
    While ``engine_answers`` returns False, a bad response proves nothing either: published ports
    are gone, and the sandboxes may be healthy.

    Args:
        engine: Runs the commands of ``exec`` probes.
        on_verdict: Called with each key and health, if the verdict changed.
        request_inspection: Called with a key if its containers should be inspected, for instance
            because the engine reports one as stopped and its event was lost.
        engine_answers: Whether the engine is connected.
        engine_info: Returns what the engine last reported about itself.
        recorder: The log and the ledger.
        clock: Observed seconds.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_verdict: Callable[[str, Health], None],
        request_inspection: Callable[[str], None],
        engine_answers: Callable[[], bool],
        engine_info: Callable[[], EngineInfo | None],
        recorder: Recorder,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._on_verdict = on_verdict
        self._request_inspection = request_inspection
        self._engine_answers = engine_answers
        self._engine_info = engine_info
        self._recorder = recorder
        self._clock = clock
        self._watched: dict[str, _Watched] = {}
        self._obstacles = _Obstacles(recorder)

    def health(self, key: str) -> Health:
        """Return the health of the key's present run."""
        watched = self._watched.get(key)
        return watched.health if watched else Health()

    def watch(self, key: str, target: Target | None) -> None:
        """Probe this run of the key and no other; None: stop probing it."""
        watched = self._watched.get(key)
        if watched is not None and watched.target == target:
            return
        if watched is not None:
            self._watched.pop(key).task.cancel()
            self._obstacles.clear(key)
        if target is not None:
            # In a new context, since the task outlives the pass that starts it.
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
        """Use the result of the image's HEALTHCHECK, if that is the probe of the container.

        The engine continues the check while a container is paused, and it fails then. So a
        container that is unhealthy when it is first seen to run is restarted only after two more
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
        """Note why there is no final verdict yet."""
        former = watched.health
        if former.verdict is Verdict.UNKNOWN:
            health = replace(former, verdict=Verdict.BAD, since=self._clock(), reason=reason)
            self._on_verdict(key, health)
            watched.health = health

    async def _follow_check(self, key: str, target: Target) -> None:
        """Request an inspection now and then: an event may be lost or not be sent at all."""
        while True:
            good = self.health(key).verdict is Verdict.GOOD
            await asyncio.sleep(max(target.spec.interval, _CHECK_POLL if good else 0.0))
            self._request_inspection(key)

    async def close(self) -> None:
        """Stop all probes."""
        tasks = [watched.task for watched in self._watched.values()]
        self._watched.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe_until_cancelled(self, key: str, target: Target) -> None:
        # The key's place in the interval, from 0 to 1, so that sandboxes that were created together
        # are not probed together.
        share, interval = zlib.crc32(key.encode()) / (1 << 32), target.spec.interval
        eager = _EAGER_FIRST
        while True:
            bad, impossible, stopped = None, "", False
            try:
                bad = await self._probe(target)
            except (Busy, NotFound):
                stopped = True
            except ProbeImpossible as error:
                impossible = str(error)
            watched, health = self._watched.get(key), Health()
            if watched is not None and watched.target == target:
                if stopped:
                    self._request_inspection(key)
                # The informer reports a lost engine, once for all sandboxes.
                elif (bad is None and not impossible) or self._engine_answers():
                    self._learn(key, watched, bad, impossible)
                health = watched.health
            eager = min(eager * _EAGER_FACTOR, interval)
            pause = eager * (1 - _JITTER * share)
            if health.verdict is Verdict.GOOD or health.bad:
                # Probes are an interval apart, and never less than half of one.
                now = asyncio.get_running_loop().time()
                pause = interval - (now - share * interval) % interval
                pause += interval if pause < interval / 2 else 0.0
            await asyncio.sleep(pause)

    def _learn(self, key: str, watched: _Watched, bad: str | None, impossible: str) -> None:
        former = watched.health
        if impossible:
            self._obstacles.add(key, impossible)
            watched.health = replace(former, unknown=impossible)
            return
        self._obstacles.clear(key)
        spec = watched.target.spec
        if spec.kind is ProbeKind.DOCKER:
            # The engine has counted the image's own retries.
            spec = spec.model_copy(update={"failures": 1 + watched.stale, "successes": 1})
        health = fold(replace(former, unknown=""), spec, bad, self._clock())
        if health.verdict is not former.verdict:
            if health.verdict is Verdict.GOOD:
                self._recorder.tell(events.SandboxHealthy(sandbox=key, cause="its probe is good"))
            elif health.verdict is Verdict.UNHEALTHY:
                self._recorder.tell(
                    events.SandboxUnhealthy(sandbox=key, cause=health.reason, failures=health.bad)
                )
                # It may be dead, and the event late or lost.
                self._request_inspection(key)
            self._on_verdict(key, health)
        watched.health = health

    async def _probe(self, target: Target) -> str | None:
        """Probe once; return what is wrong, or None for a healthy sandbox.

        Raises:
            Busy, NotFound: the container is not running.
            ProbeImpossible: the probe could not be made.
        """
        limit = target.spec.timeout
        try:
            if target.spec.kind is ProbeKind.EXEC:
                return await self._probe_exec(target)
            async with asyncio.timeout(limit):
                if target.spec.kind is ProbeKind.TCP:
                    return await probe_tcp(target.peer, target.settles)
                return await probe_http(target.peer, target.request)
        except TimeoutError:
            return f"no answer within {limit:g} s"
        except ConnectionRefusedError as error:
            info = self._engine_info()
            if info and (why := why_unreachable(info, target.address)):
                raise ProbeImpossible(why) from error
            return f"nothing listens on port {target.port}"
        except (ProbeImpossible, Busy, NotFound):
            raise
        except Exception as error:  # noqa: BLE001 - an error that a peer provokes is a bad answer
            return f"the response is invalid ({type(error).__name__})"

    async def _probe_exec(self, target: Target) -> str | None:
        command, limit = target.spec.command, target.spec.timeout
        try:
            code = await self._engine.run_in(target.container_id, command, limit)
        except (CommandTimeout, Refused) as error:
            return redactor.clean(str(error), _REASON_LENGTH)
        except (Busy, NotFound):
            raise
        except EngineError as error:
            # The same text for the same cause in every sandbox.
            cause = redactor.clean(str(error), _REASON_LENGTH)
            why = f"the engine refused to run the probe's command: {cause}"
            if is_out_of_files(error):
                why = OUT_OF_FILES
            elif isinstance(error, EngineTimeout):
                why = (
                    "the engine did not run the probe's command in time: check whether it is stuck"
                )
            elif isinstance(error, EngineUnavailable):
                why = "the engine is unavailable and cannot run the probe's command"
            elif isinstance(error, Forbidden):
                why = (
                    "commands in containers are forbidden: allow them in the proxy in front of the "
                    "engine (POST=1, EXEC=1), or use an http or tcp probe"
                )
            raise ProbeImpossible(why) from error
        return None if code == 0 else f"{command[0]} ended with exit code {code}"


class _Obstacles:
    """Causes that prevent probes, by key. A cause is logged once for all sandboxes it affects."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._causes: dict[str, str] = {}
        self._keys: defaultdict[str, set[str]] = defaultdict(set)

    def add(self, key: str, cause: str) -> None:
        """Note why the key cannot be probed."""
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
        """Note that the key is probed again, or needs no probe any more."""
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
    """Return how to probe a running container; None if it has no health probe.

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
