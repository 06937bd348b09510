"""One pass over one key: look, decide, do one step, look again; until there is nothing to do."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from dataclasses import replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from structlog.contextvars import bound_contextvars

from reconciler.core import policy
from reconciler.core.decide import decide
from reconciler.core.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ImageNotFound,
    NotFound,
    PortTaken,
    ReconcilerError,
    Throttled,
    is_out_of_files,
)
from reconciler.core.model import (
    Baseline,
    Fate,
    Health,
    ImageState,
    Pause,
    Phase,
    Verb,
    Verdict,
)
from reconciler.core.priority import Priority
from reconciler.core.replacement import roles_of
from reconciler.core.spec import PullPolicy
from reconciler.core.status import unheeded_check
from reconciler.observe.probes import target_of
from reconciler.reconcile.action_events import announce
from reconciler.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.model import Action, Container, Decision, Observed, Snapshot
    from reconciler.observe.cache import Cache
    from reconciler.observe.informer import Informer
    from reconciler.observe.probes import Prober
    from reconciler.observe.snapshots import SnapshotBuilder
    from reconciler.reconcile.circuit_breaker import CircuitBreakers
    from reconciler.reconcile.executor import Executor
    from reconciler.reconcile.exits import ExitTracker
    from reconciler.reconcile.external_changes import ExternalChanges
    from reconciler.reconcile.identity import IdentityLeases
    from reconciler.reconcile.orphans import OrphanTracker
    from reconciler.reconcile.retries import Retries
    from reconciler.resources.image_pulls import ImagePuller
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

# A pass that is not done by then lets others have their turn.
_MAX_STEPS: Final = 24
_AGAIN: Final = 1.0
_LONGEST_AGAIN: Final = 60.0
# A key that waits for its turn is woken; this is for when nobody wakes it.
_LATER: Final = 5.0
_SHORTEST_WAIT: Final = 0.02
# An engine that is synced and gives no answer to one request so often in a row has trouble with
# that request alone.
_PATIENCE: Final = 3


class _Outcome(Enum):
    DONE = auto()
    FAILED = auto()
    POSTPONED = auto()


class Controller:
    """Takes one key at a time to what is desired."""

    def __init__(
        self,
        *,
        store: Store,
        exits: ExitTracker,
        external_changes: ExternalChanges,
        snapshots: SnapshotBuilder,
        cache: Cache,
        executor: Executor,
        identities: IdentityLeases,
        puller: ImagePuller,
        prober: Prober,
        breakers: CircuitBreakers,
        failures: Retries,
        collector: OrphanTracker,
        informer: Informer,
        recorder: Recorder,
        enqueue: Callable[[str, Priority, float], None],
        publish_address: str,
    ) -> None:
        self._store = store
        self._exits = exits
        self._external_changes = external_changes
        self._snapshots = snapshots
        self._cache = cache
        self._executor = executor
        self._identities = identities
        self._puller = puller
        self._prober = prober
        self._breakers = breakers
        self._failures = failures
        self._collector = collector
        self._informer = informer
        self._recorder = recorder
        self._enqueue = enqueue
        self._address = publish_address
        self._unheeded: set[str] = set()
        self._blind: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()
        self._moves: Counter[str] = Counter()
        self._gone: dict[str, int] = {}
        self._removed: set[str] = set()

    async def reconcile(self, key: str) -> None:
        """One pass. Whatever goes wrong is remembered, and the key comes back when it is due."""
        with bound_contextvars(reconcile_id=secrets.token_hex(4)):
            try:
                await self._pass(key)
            except EngineUnavailable as error:
                # Nothing is known, so nothing is concluded. The informer reports a lost engine.
                if is_out_of_files(error):
                    self._recorder.complain(events.DaemonOutOfFiles(error=str(error)))
                if self._is_enough(self._blind[key]):
                    self._cache.mark_unseen(key, str(error))
                    self._failures.review(self._snapshots.snapshot(key))
                self._enqueue(key, Priority.TIMER, self._until_next_pass(key))
            except EngineError:
                # What is under the key could not be inspected; the view says why.
                self._failures.review(self._snapshots.snapshot(key))
                self._enqueue(key, Priority.TIMER, self._until_next_pass(key))

    def _until_next_pass(self, key: str) -> float:
        """Seconds, more after each pass that failed; a new connection wakes every key at once."""
        failed = max(self._blind[key], self._unanswered[key], 1)
        return policy.backoff(_AGAIN, _LONGEST_AGAIN, failed, key)

    async def _pass(self, key: str) -> None:
        done: tuple[Action, Observed] | None = None
        for _ in range(_MAX_STEPS):
            snapshot = await self._look(key)
            self._failures.review(snapshot)
            decision = decide(snapshot)
            self._watch_health(snapshot)
            if decision.action is not None:
                # A pull goes on in the background, and changes nothing that is observed here.
                asked = decision.action.verb is not Verb.PULL
                if asked and done == (decision.action, snapshot.observed):
                    self._note_no_effect(snapshot, decision.action)
                    done = None
                    continue
                outcome = await self._step(snapshot, decision.action)
                if outcome is _Outcome.POSTPONED:
                    self._enqueue(key, Priority.TIMER, _LATER)
                    return
                done = (decision.action, snapshot.observed) if outcome is _Outcome.DONE else None
                continue
            wait = await self._until_believed(snapshot)
            if wait is None:
                self._settle(snapshot, decision)
                return
            if wait:
                self._enqueue(key, Priority.TIMER, wait)
                return
        self._enqueue(key, Priority.TIMER, _AGAIN)

    # --- look ---------------------------------------------------------------------------------

    async def _look(self, key: str) -> Snapshot:
        self._blind[key] += 1
        before = self._cache.observed(key).containers
        await self._refresh(key)
        self._report_vanished(key, before)
        self._breakers.review()
        record = self._store.records.get(key)
        if record is not None:
            self._identities.lease(key, record.spec, self._cache.observed(key))
        snapshot = self._snapshots.snapshot(key)
        noted = self._collector.note(snapshot)
        learned = await self._exits.account_for(
            snapshot, insist=not self._is_enough(self._blind[key])
        )
        del self._blind[key]
        noticed = self._external_changes.note(snapshot)
        return self._snapshots.snapshot(key) if noted or learned or noticed else snapshot

    def _report_vanished(self, key: str, before: tuple[Container, ...]) -> None:
        """Report the containers of a record that are gone, and that this daemon did not remove."""
        observed = self._cache.observed(key)
        gone = [container for container in before if observed.container(container.id) is None]
        for container in gone:
            ours = container.id in self._removed
            self._removed.discard(container.id)
            if not ours and key in self._store.records:
                self._recorder.tell(
                    events.SandboxRemoved(
                        sandbox=key,
                        cause="it was removed, and not by this daemon",
                        container=container.name,
                    )
                )

    def _is_enough(self, unanswered: int) -> bool:
        """Whether the engine works, and it is this one question that it does not answer."""
        return unanswered >= _PATIENCE and self._informer.synced.is_set()

    async def _refresh(self, key: str) -> None:
        began = _now()
        try:
            await self._cache.refresh(key)
        except EngineTimeout as error:
            self._recorder.complain(
                events.EngineSlow(
                    call=f"inspect containers of {key}", seconds=_since(began), error=str(error)
                ),
                about=key,
            )
            raise
        self._recorder.resolve(events.EngineSlow, about=key)

    def _watch_health(self, snapshot: Snapshot) -> None:
        current, desired = roles_of(snapshot).current, snapshot.desired
        runs = current is not None and current.phase is Phase.RUNNING
        if current is None or desired is None or not runs:
            self._prober.watch(snapshot.key, None)
            self._unheeded.discard(snapshot.key)
            return
        if not (why := unheeded_check(desired, current)):
            self._unheeded.discard(snapshot.key)
        elif snapshot.key not in self._unheeded:
            self._unheeded.add(snapshot.key)
            self._recorder.tell(events.SandboxCheckUnheeded(sandbox=snapshot.key, cause=why))
        seen_at = policy.first_seen(snapshot.memory, current, snapshot.now)
        self._prober.watch(snapshot.key, target_of(desired, current, self._address, seen_at))
        self._prober.report(snapshot.key, current.check)

    def on_verdict(self, key: str, health: Health) -> None:
        """The prober's verdict on a key changed."""
        if health.verdict is Verdict.GOOD:
            self._recorder.tell(events.SandboxHealthy(sandbox=key, cause="its probe is good"))
        elif health.verdict is Verdict.UNHEALTHY:
            self._recorder.tell(
                events.SandboxUnhealthy(sandbox=key, cause=health.reason, failures=health.bad)
            )
            # Perhaps it is dead, and its event is late or lost: an end is not taken for our own.
            self.inspect_again(key)
        self._enqueue(key, Priority.EVENT, 0.0)

    def inspect_again(self, key: str) -> None:
        """Have the key's containers inspected, and a pass over it."""
        for container in self._cache.observed(key).containers:
            self._cache.touch(key, container.id)
        self._enqueue(key, Priority.EVENT, 0.0)

    def on_pulled(self, key: str, image: str, error: EngineError | None) -> None:
        """A pull that the key waited for has ended."""
        record = self._store.records.get(key)
        if error is not None and record is not None and record.spec.image == image:
            self._failures.note_pull(key, error)
        self._enqueue(key, Priority.EVENT, 0.0)

    # --- do -----------------------------------------------------------------------------------

    async def _step(self, snapshot: Snapshot, action: Action) -> _Outcome:
        """Do the action. Whatever did not work is remembered with a backoff."""
        began = _now()
        if action.verb is Verb.REMOVE:
            self._removed.add(action.container_id)
        self._store.put_memory(
            snapshot.key, policy.before_step(self._store.memory(snapshot.key), action, snapshot.now)
        )
        with bound_contextvars(sandbox=snapshot.key, cause=action.cause):
            try:
                await self._executor.execute(snapshot, action)
            except Throttled:
                return _Outcome.POSTPONED
            except ReconcilerError as error:
                await self._fail(snapshot, action, error)
                return _Outcome.FAILED
            await self._succeed(snapshot, action, _since(began))
            return _Outcome.DONE

    async def _fail(self, snapshot: Snapshot, action: Action, error: ReconcilerError) -> None:
        match error:
            case EngineTimeout():
                self._failures.note(snapshot, action, error, events.ActionTimedOut)
            case EngineUnavailable():
                self._unanswered[snapshot.key] += 1
                if not self._is_enough(self._unanswered[snapshot.key]):
                    raise error
                self._failures.note(snapshot, action, error, events.ActionFailed)
            case PortTaken():
                self._move_ports(snapshot, action, error)
            case ImageNotFound():
                self._lack_image(snapshot, action, error)
            case NotFound() if not await self._is_still_there(snapshot, action):
                pass
            case _:
                self._failures.note(snapshot, action, error, events.ActionFailed)

    async def _is_still_there(self, snapshot: Snapshot, action: Action) -> bool:
        """Whether the engine missed something other than the container that the step is on."""
        self._cache.doubt(snapshot.key)
        await self._cache.refresh(snapshot.key)
        target = action.container_id
        return not target or self._cache.observed(snapshot.key).container(target) is not None

    def _note_no_effect(self, snapshot: Snapshot, action: Action) -> None:
        """The engine says that it did the step, and everything is as before."""
        error = EngineError(
            f"the engine reports success at {action.verb} of {action.target}, and it did nothing: "
            "see its own log"
        )
        with bound_contextvars(sandbox=snapshot.key, cause=action.cause):
            self._failures.note(snapshot, action, error, events.ActionFailed)

    async def _succeed(self, snapshot: Snapshot, action: Action, seconds: float) -> None:
        self._unanswered.pop(snapshot.key, None)
        if action.verb is Verb.START:
            self._moves.pop(snapshot.key, None)
        ended = await self._end_of(snapshot, action) if action.verb is Verb.STOP else None
        memory = self._store.memory(snapshot.key)
        if action.verb is Verb.START:
            memory = policy.after_start(memory)
        if action.verb is Verb.UNPAUSE:
            # Until it is seen to run: this pause is over for us.
            memory = replace(
                memory, pause=Pause(action.container_id, ours=True, since=snapshot.now)
            )
        if action.verb is Verb.UPDATE:
            memory = replace(memory, baseline=await self._updated(snapshot, action))
        if action.restart:
            if action.verb is Verb.STOP and snapshot.desired is not None:
                memory = policy.after_run(memory, snapshot.health, snapshot.desired.spec.restart)
            memory = policy.after_restart(memory)
        if ended:
            memory = policy.after_own_stop(memory, ended)
        if memory is not self._store.memory(snapshot.key):
            self._store.put_memory(snapshot.key, memory)
        announce(self._recorder, snapshot, action, seconds)
        if action.restart and policy.is_crash_loop_reported(memory.streak):
            self._recorder.tell(
                events.SandboxRestartLoop(
                    sandbox=snapshot.key, cause=action.cause, in_a_row=memory.streak
                )
            )

    async def _updated(self, snapshot: Snapshot, action: Action) -> Baseline | None:
        """The limits as the engine words them now: no limit may read as a high one."""
        await self._cache.refresh(snapshot.key)
        container = self._cache.observed(snapshot.key).container(action.container_id)
        return Baseline(container.id, container.limits) if container else None

    async def _end_of(self, snapshot: Snapshot, action: Action) -> Container | None:
        """The container that was just stopped, where the engine says that it has ended."""
        await self._cache.refresh(snapshot.key)
        stopped = self._cache.observed(snapshot.key).container(action.container_id)
        return stopped if stopped and stopped.phase is Phase.EXITED else None

    def _move_ports(self, snapshot: Snapshot, action: Action, error: PortTaken) -> None:
        try:
            replaced = self._identities.replace(snapshot.key, error.port)
        except ReconcilerError as exhausted:
            self._failures.note(snapshot, action, exhausted, events.ActionFailed)
            return
        self._moves[snapshot.key] += 1
        # Where it has a port that is not leased, its spec is older than the record's. Where the
        # next port is taken too, the engine may call any port taken.
        if not replaced or self._moves[snapshot.key] > 1:
            self._failures.note(snapshot, action, error, events.ActionFailed)

    def _lack_image(self, snapshot: Snapshot, action: Action, error: ImageNotFound) -> None:
        assert snapshot.desired is not None
        spec = snapshot.desired.spec
        never = spec.pull is PullPolicy.NEVER
        if never or snapshot.image is ImageState.FRESH:
            self._failures.note(snapshot, action, error, events.ActionFailed)
        if not never:
            self._puller.mark(snapshot.key, spec.image, ImageState.ABSENT)

    # --- come to rest -------------------------------------------------------------------------

    async def _until_believed(self, snapshot: Snapshot) -> float | None:
        """Seconds until a deletion may be forgotten; None: now.

        One answer alone may be wrong, so a list that is newer than the removal has to agree.
        """
        key = snapshot.key
        if (
            snapshot.desired is not None
            or snapshot.fate is Fate.UNKNOWN
            or snapshot.observed.containers
        ):
            self._gone.pop(key, None)
            return None
        after = self._gone.setdefault(key, self._cache.lists)
        listed = self._cache.listed(key, after)
        if listed is None:
            if wait := self._cache.until_confirmation():
                return wait
            await self._cache.confirm()
            listed = self._cache.listed(key, after)
        del self._gone[key]
        if listed:
            # What the list has may be foreign: only an inspection tells.
            self._cache.doubt(key)
            await self._refresh(key)
        return 0.0 if self._cache.observed(key).containers else None

    def _settle(self, snapshot: Snapshot, decision: Decision) -> None:
        if decision.wait_until is not None:
            delay = max(decision.wait_until - snapshot.now, _SHORTEST_WAIT)
            self._enqueue(snapshot.key, Priority.TIMER, delay)
        if not decision.waiting_for:
            self._failures.forget(snapshot.key)
        # What is known of an image is for the container that is to be made now, and for no later.
        awaited = snapshot.desired.spec.image if snapshot.desired and decision.waiting_for else None
        self._puller.release(snapshot.key, awaited)
        gone = snapshot.desired is None and not snapshot.observed.containers
        if gone and not decision.waiting_for and not snapshot.held:
            if snapshot.fate is Fate.DELETED:
                self._collector.report_kept(snapshot)
            self._store.forget(snapshot.key)
            for counts in (self._blind, self._unanswered, self._moves):
                counts.pop(snapshot.key, None)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _since(began: float) -> float:
    return round(_now() - began, 3)
