"""Record failed actions with their next retry time, and report each fault once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core.action import Verb
from reconciler.core.errors import Forbidden, Removing, Unstartable
from reconciler.core.failures import (
    after_failure,
    after_success,
    failure_key_of,
    is_unstartable,
    still_there,
)
from reconciler.core.restart import Failure, FailureKey, Fault
from reconciler.core.spec import RestartSpec
from reconciler.core.status import BEGUN, OVER, STEPS, faults_of, is_at_goal, status_of
from reconciler.telemetry import events
from reconciler.telemetry.redact import redactor

if TYPE_CHECKING:
    from reconciler.core.action import Action
    from reconciler.core.snapshot import Snapshot
    from reconciler.observe.snapshots import SnapshotBuilder
    from reconciler.reconcile.circuit_breaker import CircuitBreakers
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

_DEFAULT_RESTART: Final = RestartSpec()


class Retries:
    """The failures and faults of every key, kept in the store's memory of the key.

    A failure is an action that failed; it sets when the action is due again. A fault is what is
    reported, whatever its source: ``sandbox.error`` when it begins, ``sandbox.recovered`` when it
    ends. An action that fails again is reported as ``action.failed``.
    """

    def __init__(
        self,
        *,
        store: Store,
        snapshots: SnapshotBuilder,
        breakers: CircuitBreakers,
        recorder: Recorder,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._breakers = breakers
        self._recorder = recorder

    def note(
        self,
        snapshot: Snapshot,
        action: Action,
        error: Exception,
        event: type[events.ActionFailed | events.ActionTimedOut] = events.ActionFailed,
    ) -> None:
        """Record that an action failed, and report it unless the engine is only slow at it.

        ``event`` reports the repetitions.
        """
        about = failure_key_of(snapshot, action)
        predecessor = snapshot.roles.predecessor
        restores = predecessor is not None and not is_unstartable(snapshot.memory, predecessor)
        swap = action.verb is Verb.START and not about.target and restores
        unstartable = action.container_id if isinstance(error, Unstartable) else ""
        failure = self._remember(snapshot, about, error, swap=swap, unstartable=unstartable)
        if failure.progress:
            return
        retry_in = round(failure.not_before - failure.at, 1)
        if snapshot.desired is None and not snapshot.deleted:
            self._recorder.complain(
                events.GarbageFailed(
                    sandbox=snapshot.key,
                    cause=action.cause,
                    kind="volume" if action.verb is Verb.REMOVE_VOLUME else "container",
                    name=action.target,
                    error=failure.cause,
                    retry_in=retry_in,
                ),
                about=f"{snapshot.key} {action.target}",
            )
            return
        source = str(action.verb)
        # If the circuit is open or the call is forbidden, one log line for the engine is enough.
        is_rule = isinstance(error, Forbidden) and error.part
        logged = action.verb not in self._breakers.open_circuits() and not is_rule
        if source not in self._faults(snapshot.key):
            self._begin(snapshot.key, Fault(source, failure.cause, logged), action.cause)
        elif logged:
            self._recorder.complain(
                event(
                    sandbox=snapshot.key,
                    cause=action.cause,
                    action=source,
                    error=failure.cause,
                    retry_in=retry_in,
                ),
                about=f"{snapshot.key} {source}",
            )

    def note_pull(self, key: str, image: str, error: Exception) -> None:
        """Record that an image could not be pulled, if the key still wants that image."""
        record = self._store.records.get(key)
        if record is None or record.spec.image != image:
            return
        snapshot = self._snapshots.snapshot(key)
        spec_hash = snapshot.desired.spec_hash if snapshot.desired else None
        self._remember(snapshot, FailureKey(Verb.PULL, spec_hash or "", ""), error)
        self.review(self._snapshots.snapshot(key))

    def review(self, snapshot: Snapshot) -> None:
        """Report the faults that began or ended since the last review."""
        now, before = faults_of(snapshot), self._faults(snapshot.key)
        for source, error in now.items():
            if source not in before:
                fault = Fault(source, redactor.clean(error))
                self._begin(snapshot.key, fault, BEGUN.get(source, "it is not as desired"))
        if not before:
            return
        done = is_at_goal(snapshot) or snapshot.desired is None
        for source, fault in before.items():
            if source in now or (source in STEPS and not done):
                continue
            key, memory = snapshot.key, self._store.memory(snapshot.key)
            left = tuple(other for other in memory.faults if other.source != source)
            self._store.put_memory(key, replace(memory, faults=left))
            for event in (events.ActionFailed, events.ActionTimedOut):
                self._recorder.resolve(event, about=f"{key} {source}")
            if snapshot.desired is None and snapshot.deleted:
                # The deletion is logged already, and is no recovery.
                continue
            cause = OVER.get(source, f"it is {status_of(snapshot)[0]}")
            if snapshot.desired is None:
                cause = "it is no longer declared"
            report = self._recorder.tell if fault.logged else self._recorder.note
            report(
                events.SandboxRecovered(sandbox=key, cause=cause, after=fault.error, source=source)
            )

    def _begin(self, key: str, fault: Fault, cause: str) -> None:
        memory = self._store.memory(key)
        self._store.put_memory(key, replace(memory, faults=(*memory.faults, fault)))
        report = self._recorder.tell if fault.logged else self._recorder.note
        report(
            events.SandboxError(sandbox=key, cause=cause, error=fault.error, source=fault.source)
        )

    def _faults(self, key: str) -> dict[str, Fault]:
        return {fault.source: fault for fault in self._store.memory(key).faults}

    def _remember(
        self,
        snapshot: Snapshot,
        about: FailureKey,
        error: Exception,
        *,
        swap: bool = False,
        unstartable: str = "",
    ) -> Failure:
        # Not the snapshot's time: the action may have taken its whole timeout since.
        now = self._snapshots.now
        failed = Failure(
            about.verb,
            about.spec_hash,
            redactor.clean(str(error)),
            count=1,
            at=now,
            not_before=now,
            target=about.target,
            unstartable=unstartable,
            progress=isinstance(error, Removing),
        )
        memory = after_failure(
            self._store.memory(snapshot.key),
            failed,
            snapshot.desired.spec.restart if snapshot.desired else _DEFAULT_RESTART,
            snapshot.key,
            swap=swap,
            relevant=still_there(snapshot),
        )
        self._store.put_memory(snapshot.key, memory)
        return memory.failures[-1]

    def forget(self, key: str) -> None:
        """Drop the failures of a key that has nothing left to do."""
        self._store.put_memory(key, after_success(self._store.memory(key)))
