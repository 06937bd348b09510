"""One pass over one key: look, decide, do one step, look again; until there is nothing to do."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from structlog.contextvars import bound_contextvars

from reconciler.core import policy
from reconciler.core.decide import concerned_hash, decide
from reconciler.core.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ImageNotFound,
    NotFound,
    PortTaken,
    ReconcilerError,
)
from reconciler.core.model import (
    Death,
    Failure,
    Fate,
    Health,
    ImageState,
    Phase,
    Verb,
    Verdict,
)
from reconciler.core.roles import roles_of
from reconciler.core.spec import DesiredState, ProbeKind, PullPolicy, RestartSpec
from reconciler.loop.announce import announce
from reconciler.loop.prober import Target
from reconciler.loop.queue import Priority
from reconciler.service.events import Event
from reconciler.service.redact import redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.model import Action, Container, Decision, Desired, View
    from reconciler.engine.protocol import Engine
    from reconciler.loop.collector import Collector
    from reconciler.loop.executor import Executor
    from reconciler.loop.informer import Informer
    from reconciler.loop.ports import Identities
    from reconciler.loop.prober import Prober
    from reconciler.loop.puller import Puller
    from reconciler.loop.reporter import Reporter
    from reconciler.loop.views import Views
    from reconciler.store.store import Store

# A pass that is not done by then lets others have their turn.
_MAX_STEPS: Final = 24
_AGAIN: Final = 1.0
_SHORTEST_WAIT: Final = 0.02
_TAIL_LINES: Final = 20
# A short run's first lines can be older than the start that the engine tells of it.
_START_SLACK: Final = 0.2
_DEFAULT_RESTART: Final = RestartSpec()


class Controller:
    """Takes one key at a time to what is desired."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: Store,
        views: Views,
        informer: Informer,
        executor: Executor,
        identities: Identities,
        puller: Puller,
        prober: Prober,
        collector: Collector,
        reporter: Reporter,
        enqueue: Callable[[str, Priority, float], None],
        publish_address: str,
    ) -> None:
        self._engine = engine
        self._store = store
        self._views = views
        self._informer = informer
        self._executor = executor
        self._identities = identities
        self._puller = puller
        self._prober = prober
        self._collector = collector
        self._reporter = reporter
        self._enqueue = enqueue
        self._address = publish_address

    async def reconcile(self, key: str) -> None:
        """One pass. Whatever goes wrong is remembered, and the key comes back when it is due."""
        with bound_contextvars(reconcile_id=secrets.token_hex(4)):
            try:
                await self._pass(key)
            except EngineUnavailable as error:
                # Nothing is known, so nothing is concluded. The informer says that it is lost.
                self._reporter.complain(Event.ENGINE_SLOW, about=key, call=key, error=str(error))
                self._enqueue(key, Priority.TIMER, _AGAIN)
            except EngineError as error:
                self._reporter.complain(
                    Event.ACTION_FAILED,
                    about=key,
                    sandbox=key,
                    action="inspect",
                    error=str(error),
                )
                self._enqueue(key, Priority.TIMER, _AGAIN)

    async def _pass(self, key: str) -> None:
        for _ in range(_MAX_STEPS):
            view = await self._look(key)
            decision = decide(view)
            self._watch_health(view)
            if decision.action is None:
                self._settle(view, decision)
                return
            await self._step(view, decision.action)
        self._enqueue(key, Priority.TIMER, _AGAIN)

    # --- look ---------------------------------------------------------------------------------

    async def _look(self, key: str) -> View:
        await self._informer.refresh(key)
        view = self._views.view(key)
        noted = self._collector.note(view)
        learned = self._own_up(view) or await self._learn_of_death(view)
        return self._views.view(key) if noted or learned else view

    def _own_up(self, view: View) -> bool:
        """Take an end into account that was asked for by a daemon which died before it noted it."""
        container = _stopped_by_us(view)
        if container is None or container.finished_at in {None, view.memory.last_exit}:
            return False
        memory = policy.after_own_stop(view.memory, container.finished_at or view.now)
        self._store.put_memory(view.key, memory)
        return True

    async def _learn_of_death(self, view: View) -> bool:
        """Take an exit that nobody here asked for into account, once."""
        container = roles_of(view).current
        if container is None or not _died(view, container):
            return False
        assert view.desired is not None
        death = await self._autopsy(view, container)
        restart = view.desired.spec.restart
        memory = self._store.memory(view.key)  # a pull may have failed meanwhile
        memory = policy.after_death(memory, container, death, restart, view.key)
        self._store.put_memory(view.key, memory)
        self._reporter.tell(
            Event.SANDBOX_DIED,
            view.key,
            death.reason,
            exit_code=death.exit_code,
            oom_killed=death.oom_killed,
            last_lines=list(death.log_tail[-3:]),
            restarts=memory.restarts,
            restart_in=round(max(memory.not_before - view.now, 0.0), 1),
        )
        return True

    async def _autopsy(self, view: View, container: Container) -> Death:
        try:
            since = (container.started_at or 0.0) - _START_SLACK
            tail = await self._engine.log_tail(container.id, _TAIL_LINES, since=since)
        except EngineError as error:
            if isinstance(error, EngineUnavailable) and not isinstance(error, EngineTimeout):
                # Perhaps the engine ends, and ended the sandbox: what it is asked to start now it
                # leaves half done, and the ports taken.
                raise
            tail = (f"its log cannot be read: {error}",)
        return Death(
            container_id=container.id,
            finished_at=container.finished_at or view.now,
            exit_code=container.exit_code,
            oom_killed=container.oom_killed,
            error=redactor.clean(container.error),
            log_tail=tuple(redactor.clean(line, 500) for line in tail),
        )

    def _watch_health(self, view: View) -> None:
        current, desired = roles_of(view).current, view.desired
        runs = current is not None and current.phase is Phase.RUNNING
        if current is None or desired is None or not runs:
            self._prober.watch(view.key, None)
            return
        self._prober.watch(view.key, _target(desired, current, self._address))

    def on_verdict(self, key: str, health: Health) -> None:
        """The prober's verdict on a key changed."""
        if health.verdict is Verdict.GOOD:
            self._reporter.tell(Event.SANDBOX_HEALTHY, key, "its probe is good")
        elif health.verdict is Verdict.UNHEALTHY:
            self._reporter.tell(Event.SANDBOX_UNHEALTHY, key, health.reason, failures=health.bad)
        self._enqueue(key, Priority.EVENT, 0.0)

    def on_pulled(self, key: str, image: str, error: EngineError | None) -> None:
        """A pull that the key waited for has ended."""
        record = self._store.records.get(key)
        if error is not None and record is not None and record.spec.image == image:
            self._remember_pull_failure(key, error)
        self._enqueue(key, Priority.EVENT, 0.0)

    def _remember_pull_failure(self, key: str, error: EngineError) -> None:
        view = self._views.view(key)
        spec_hash = view.desired.spec_hash if view.desired else None
        self._remember_failure(view, Verb.PULL, spec_hash or "", str(error), swap=False)

    # --- do -----------------------------------------------------------------------------------

    async def _step(self, view: View, action: Action) -> None:
        with bound_contextvars(sandbox=view.key, cause=action.cause):
            try:
                await self._executor.execute(view, action)
            except EngineTimeout as error:
                self._fail(view, action, error, Event.ACTION_TIMED_OUT)
            except EngineUnavailable:
                raise
            except PortTaken as error:
                self._move_ports(view, action, error)
            except ImageNotFound as error:
                self._lack_image(view, action, error)
            except NotFound:
                self._informer.doubt(view.key)
            except ReconcilerError as error:
                self._fail(view, action, error, Event.ACTION_FAILED)
            else:
                await self._succeed(view, action)

    async def _succeed(self, view: View, action: Action) -> None:
        ended = await self._end_of(view, action) if action.verb is Verb.STOP else None
        memory = self._store.memory(view.key)
        if action.restart:
            memory = policy.after_restart(memory)
        if ended:
            memory = policy.after_own_stop(memory, ended)
        if action.restart or ended:
            self._store.put_memory(view.key, memory)
        announce(self._reporter, view, action)

    async def _end_of(self, view: View, action: Action) -> float | None:
        """When the container ended that was just stopped."""
        await self._informer.refresh(view.key)
        containers = self._informer.observed(view.key).containers
        stopped = next((c for c in containers if c.id == action.container_id), None)
        return stopped.finished_at if stopped else None

    def _move_ports(self, view: View, action: Action, error: PortTaken) -> None:
        try:
            replaced = self._identities.replace(view.key, error.port)
        except ReconcilerError as exhausted:
            self._fail(view, action, exhausted, Event.ACTION_FAILED)
            return
        if not replaced:
            # The container has a port that is not leased: its spec is older than the record's.
            self._fail(view, action, error, Event.ACTION_FAILED)

    def _lack_image(self, view: View, action: Action, error: ImageNotFound) -> None:
        assert view.desired is not None
        spec = view.desired.spec
        never = spec.pull is PullPolicy.NEVER
        if never or view.image is ImageState.FRESH:
            self._fail(view, action, error, Event.ACTION_FAILED)
        if not never:
            self._puller.mark(view.key, spec.image, ImageState.ABSENT)

    def _fail(self, view: View, action: Action, error: Exception, event: Event) -> None:
        roles = roles_of(view)
        if view.desired is None and view.fate is Fate.UNKNOWN:
            event = Event.GARBAGE_FAILED
        swap = action.verb is Verb.START and roles.predecessor is not None
        spec_hash = concerned_hash(view, action)
        failure = self._remember_failure(view, action.verb, spec_hash, str(error), swap=swap)
        self._reporter.complain(
            event,
            about=f"{view.key} {action.verb} {error}",
            sandbox=view.key,
            action=str(action.verb),
            error=str(error),
            retry_in=round(failure.not_before - failure.at, 1),
        )
        if failure.count == 1:
            told = Event.SANDBOX_ROLLED_BACK if swap else Event.SANDBOX_ERROR
            self._reporter.tell(told, view.key, action.cause, error=str(error))

    def _remember_failure(
        self,
        view: View,
        verb: Verb,
        spec_hash: str,
        cause: str,
        *,
        swap: bool,
    ) -> Failure:
        failed = Failure(verb, spec_hash, redactor.clean(cause), 1, view.now, view.now)
        relevant = {c.spec_hash for c in view.observed.containers}
        if view.desired is not None and view.desired.spec_hash is not None:
            relevant.add(view.desired.spec_hash)
        restart = view.desired.spec.restart if view.desired else _DEFAULT_RESTART
        memory = policy.after_failure(
            self._store.memory(view.key),
            failed,
            restart,
            view.key,
            swap=swap,
            relevant=relevant,
        )
        self._store.put_memory(view.key, memory)
        return memory.failures[-1]

    # --- come to rest -------------------------------------------------------------------------

    def _settle(self, view: View, decision: Decision) -> None:
        if decision.wait_until is not None:
            delay = max(decision.wait_until - view.now, _SHORTEST_WAIT)
            self._enqueue(view.key, Priority.TIMER, delay)
        if not decision.waiting_for:
            self._recover(view)
        # What is known of an image is for the container that is to be made now, and for no later.
        awaited = view.desired.spec.image if view.desired and decision.waiting_for else None
        self._puller.release(view.key, awaited)
        if view.desired is None and not view.observed.containers:
            self._store.forget(view.key)

    def _recover(self, view: View) -> None:
        failure = view.memory.failure
        if failure is None:
            return
        self._store.put_memory(view.key, policy.after_success(view.memory))
        self._reporter.tell(
            Event.SANDBOX_RECOVERED, view.key, "it is as desired", after=failure.cause
        )


def _stopped_by_us(view: View) -> Container | None:
    """The container that ended because the record, or its replacement, asks for that."""
    roles, desired = roles_of(view), view.desired
    if desired is None:
        return None
    stopped: Container | None = None
    if roles.predecessor and (roles.current is None or roles.current.started_at is None):
        stopped = roles.predecessor
    elif roles.successor or desired.state is DesiredState.STOPPED:
        stopped = roles.current
    return stopped if stopped and stopped.phase is Phase.EXITED else None


def _died(view: View, container: Container) -> bool:
    """It ended, it should not have, and nobody has taken it into account yet."""
    wanted = view.desired is not None and view.desired.state is not DesiredState.STOPPED
    ended = container.phase in {Phase.EXITED, Phase.DEAD} and container.started_at is not None
    return wanted and ended and container.finished_at != view.memory.last_exit


def _target(desired: Desired, container: Container, address: str) -> Target | None:
    health = desired.spec.health
    if health is None or container.started_at is None:
        return None
    port = 0
    if health.kind is not ProbeKind.EXEC:
        named = {p.name: p.container_port for p in desired.spec.ports}
        inside = named[health.port] if health.port else desired.spec.ports[0].container_port
        port = container.ports.get(inside, inside)
    host = address if container.ports else "127.0.0.1"
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - a lookup
    return Target(container.id, container.started_at, health, reachable, port)
