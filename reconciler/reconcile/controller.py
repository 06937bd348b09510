"""One pass over one key: observe, decide, do one action, and repeat until nothing is left to do."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Final

from structlog.contextvars import bound_contextvars

from reconciler.core.action import Source, Verb
from reconciler.core.decide import decide
from reconciler.core.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ReconcilerError,
    Throttled,
    is_engine_lost,
    is_out_of_files,
)
from reconciler.core.observed import Phase
from reconciler.core.restart import backoff, before_step, first_seen
from reconciler.core.status import unheeded_check
from reconciler.observe.probes import target_of
from reconciler.reconcile.workers import Result
from reconciler.telemetry import events

if TYPE_CHECKING:
    from reconciler.core.action import Action, Decision
    from reconciler.core.snapshot import Snapshot
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
    from reconciler.reconcile.outcomes import Outcomes
    from reconciler.reconcile.retries import Retries
    from reconciler.resources.image_pulls import ImagePuller
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

# Actions and rounds of one pass, so that other keys get their turn.
_MAX_STEPS: Final = 24
# Seconds until the next pass after one that failed or was cut short; doubled up to the limit.
_RETRY: Final = 1.0
_LONGEST_RETRY: Final = 60.0
# Seconds until the next pass of a throttled key, which is woken earlier as a rule.
_THROTTLED_RETRY: Final = 5.0
_SHORTEST_WAIT: Final = 0.02
# After so many requests in a row without an answer from an engine that is otherwise synced, the
# trouble is that one request, and not the engine.
_UNANSWERED_LIMIT: Final = 3


class Controller:
    """Takes one key at a time to its desired state."""

    def __init__(
        self,
        *,
        store: Store,
        exits: ExitTracker,
        external_changes: ExternalChanges,
        snapshots: SnapshotBuilder,
        cache: Cache,
        executor: Executor,
        outcomes: Outcomes,
        identities: IdentityLeases,
        puller: ImagePuller,
        prober: Prober,
        breakers: CircuitBreakers,
        retries: Retries,
        orphans: OrphanTracker,
        informer: Informer,
        recorder: Recorder,
        publish_address: str,
    ) -> None:
        self._store = store
        self._exits = exits
        self._external_changes = external_changes
        self._snapshots = snapshots
        self._cache = cache
        self._executor = executor
        self._outcomes = outcomes
        self._identities = identities
        self._puller = puller
        self._prober = prober
        self._breakers = breakers
        self._retries = retries
        self._orphans = orphans
        self._informer = informer
        self._recorder = recorder
        self._address = publish_address
        # Keys whose spec has a check that its container cannot have.
        self._unheeded: set[str] = set()
        # By key: observations, and actions, in a row that the engine did not answer.
        self._unobserved: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()
        # By key: the number of the last list that was requested before its containers were gone.
        self._gone: dict[str, int] = {}
        # Ids of the containers that this daemon removes.
        self._removed: set[str] = set()

    async def reconcile(self, key: str) -> Result:
        """Do one pass; record what fails and return when the key is due again."""
        with bound_contextvars(reconcile_id=secrets.token_hex(4)):
            steps, result, done = 0, None, None
            try:
                while result is None and steps < _MAX_STEPS:
                    steps += 1
                    snapshot = await self._observe(key)
                    decision = decide(snapshot)
                    action = decision.action
                    if action is None:
                        result = await self._finish(snapshot, decision)
                    # A pull runs in the background and changes nothing that is observed here.
                    elif action.verb is not Verb.PULL and done == (action, snapshot.observed):
                        self._outcomes.had_no_effect(snapshot, action)
                        done = None
                    else:
                        succeeded = await self._execute(snapshot, action)
                        done = (action, snapshot.observed) if succeeded else None
            except Throttled:
                return Result(_THROTTLED_RETRY)
            except EngineUnavailable as error:
                # Nothing is known, so nothing is concluded. The informer reports a lost engine.
                if is_out_of_files(error):
                    self._recorder.complain(events.DaemonOutOfFiles(error=str(error)))
                if self._is_one_request(self._unobserved[key]):
                    self._cache.note_inspection_error(key, str(error))
                    self._retries.review(self._snapshots.snapshot(key))
            except EngineError:
                # An object under the key could not be inspected; the snapshot has the reason.
                self._retries.review(self._snapshots.snapshot(key))
            else:
                return result or Result(_RETRY)
            # A new connection to the engine enqueues every key at once, before the backoff ends.
            failures = max(self._unobserved[key], self._unanswered[key], 1)
            return Result(backoff(_RETRY, _LONGEST_RETRY, failures, key))

    def _is_one_request(self, unanswered: int) -> bool:
        """Whether the engine works and leaves only this one request unanswered."""
        return unanswered >= _UNANSWERED_LIMIT and self._informer.synced.is_set()

    # --- observe --------------------------------------------------------------------------------

    async def _observe(self, key: str) -> Snapshot:
        """Inspect what changed, lease ports, record and report what happened, and set the probe.

        Returns:
            The snapshot to decide from.
        """
        self._unobserved[key] += 1
        before = self._cache.observed(key).containers
        await self._refresh(key)
        observed = self._cache.observed(key)
        record = self._store.records.get(key)
        for container in before:
            if observed.container(container.id) is not None:
                continue
            if container.id not in self._removed and record is not None:
                self._recorder.tell(
                    events.SandboxRemoved(
                        sandbox=key, cause="someone else removed it", container=container.name
                    )
                )
            self._removed.discard(container.id)
        self._breakers.report(self._informer.connections)
        if record is not None:
            self._identities.lease(key, record.spec, observed)
        snapshot = self._snapshots.snapshot(key)
        changed = self._orphans.note(snapshot)
        changed |= await self._exits.account_for(
            snapshot, insist=not self._is_one_request(self._unobserved[key])
        )
        del self._unobserved[key]
        changed |= self._external_changes.note(snapshot)
        snapshot = self._snapshots.snapshot(key) if changed else snapshot
        self._retries.review(snapshot)
        # The container is probed while it runs, or has the result of its image's own check.
        current, desired = snapshot.roles.current, snapshot.desired
        if current is None or desired is None or current.phase is not Phase.RUNNING:
            self._prober.watch(key, None)
            self._unheeded.discard(key)
            return snapshot
        if not (why := unheeded_check(desired, current)):
            self._unheeded.discard(key)
        elif key not in self._unheeded:
            self._unheeded.add(key)
            self._recorder.tell(events.SandboxCheckUnheeded(sandbox=key, cause=why))
        seen_at = first_seen(snapshot.memory, current, snapshot.now)
        self._prober.watch(key, target_of(desired, current, self._address, seen_at))
        self._prober.report(key, current.check)
        return snapshot

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

    # --- act ------------------------------------------------------------------------------------

    async def _execute(self, snapshot: Snapshot, action: Action) -> bool:
        """Do the action and record its outcome; return whether it succeeded.

        Raises:
            Throttled: another key has the turn, or the circuit is open. Nothing is recorded.
            EngineUnavailable: the engine is lost.
        """
        key, began = snapshot.key, _now()
        if action.verb is Verb.REMOVE:
            self._removed.add(action.container_id)
        self._store.put_memory(key, before_step(self._store.memory(key), action, snapshot.now))
        with bound_contextvars(sandbox=key, cause=action.cause):
            try:
                limits = await self._executor.execute(snapshot, action)
            except Throttled:
                raise
            except ReconcilerError as error:
                if is_engine_lost(error):
                    self._unanswered[key] += 1
                    if not self._is_one_request(self._unanswered[key]):
                        raise
                await self._outcomes.failed(snapshot, action, error)
                return False
            self._unanswered.pop(key, None)
            await self._outcomes.succeeded(snapshot, action, limits, _since(began))
            return True

    # --- finish ---------------------------------------------------------------------------------

    async def _finish(self, snapshot: Snapshot, decision: Decision) -> Result | None:
        """Forget what a key without further actions needs no more; None: observe it again.

        One answer alone may be wrong, so a deletion is forgotten only after a list agrees that is
        newer than the removal.
        """
        key = snapshot.key
        gone = snapshot.desired is None and not snapshot.observed.containers
        if not (gone and snapshot.deleted):
            self._gone.pop(key, None)
        else:
            after = self._gone.setdefault(key, self._cache.lists)
            listed = self._cache.listed(key, after)
            if listed is None:
                if wait := self._cache.until_confirmation():
                    return Result(wait)
                await self._cache.confirm()
                listed = self._cache.listed(key, after)
            del self._gone[key]
            if listed:
                # The list may show a foreign container: only an inspection tells.
                self._cache.request_listing(key)
                await self._refresh(key)
            if self._cache.observed(key).containers:
                return None
        if not decision.waiting_for:
            self._retries.forget(key)
        # The state of an image is for the container that waits for it, and for no later one.
        awaited = snapshot.desired.spec.image if snapshot.desired and decision.waiting_for else None
        self._puller.release(key, awaited)
        if gone and not decision.waiting_for and not snapshot.reason(Source.RECORD):
            if snapshot.deleted:
                self._orphans.report_kept(snapshot)
            self._store.forget(key)
            self._outcomes.forget(key)
            self._unobserved.pop(key, None)
            self._unanswered.pop(key, None)
        if decision.wait_until is None:
            return Result()
        return Result(max(decision.wait_until - snapshot.now, _SHORTEST_WAIT))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _since(began: float) -> float:
    return round(_now() - began, 3)
