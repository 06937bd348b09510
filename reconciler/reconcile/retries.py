"""What is wrong with each sandbox: remembered, and reported when it begins and when it is over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core import faults, policy
from reconciler.core.errors import Forbidden, Removing, Unstartable
from reconciler.core.faults import faults_of
from reconciler.core.model import Failure, FailureKey, Fate, Fault, Verb
from reconciler.core.replacement import roles_of
from reconciler.core.spec import RestartSpec
from reconciler.core.status import is_at_goal, status_of
from reconciler.core.steps import failure_key_of, still_there
from reconciler.telemetry import events
from reconciler.telemetry.redact import redactor

if TYPE_CHECKING:
    from reconciler.core.model import Action, Snapshot
    from reconciler.observe.snapshots import SnapshotBuilder
    from reconciler.reconcile.circuit_breaker import CircuitBreakers
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

_DEFAULT_RESTART: Final = RestartSpec()


class Retries:
    """The failures and faults of every key, in the store's memory of it.

    A failure is a step that could not be done; it sets when the step is due again. A fault is what
    is reported: ``sandbox.error`` when it begins and ``sandbox.recovered`` when it is over,
    whatever its source. A step that fails again is reported as ``action.failed``.
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
        event: type[events.ActionFailed | events.ActionTimedOut],
    ) -> None:
        """Remember that a step failed, and report it unless the engine is only slow at it.

        ``event`` is for the step's repetitions.
        """
        about = failure_key_of(snapshot, action)
        swap = action.verb is Verb.START and not about.target and _comes_back(snapshot)
        wrecked = action.container_id if isinstance(error, Unstartable) else ""
        failure = self._remember(snapshot, about, error, swap=swap, wrecked=wrecked)
        if failure.progress:
            return
        retry_in = round(failure.not_before - failure.at, 1)
        if snapshot.desired is None and snapshot.fate is Fate.UNKNOWN:
            self._report_garbage(snapshot.key, action, failure.cause, retry_in)
            return
        source = str(action.verb)
        # A step that hangs, or is forbidden, for every sandbox is logged once, of the engine.
        is_rule = isinstance(error, Forbidden) and error.part
        logged = action.verb not in self._breakers.hung() and not is_rule
        if source not in self._open(snapshot.key):
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

    def _report_garbage(self, key: str, action: Action, error: str, retry_in: float) -> None:
        self._recorder.complain(
            events.GarbageFailed(
                sandbox=key,
                cause=action.cause,
                kind="volume" if action.verb is Verb.REMOVE_VOLUME else "container",
                name=action.target,
                error=error,
                retry_in=retry_in,
            ),
            about=f"{key} {action.target}",
        )

    def note_pull(self, key: str, error: Exception) -> None:
        """Remember that the image which the key waits for could not be pulled."""
        snapshot = self._snapshots.snapshot(key)
        spec_hash = snapshot.desired.spec_hash if snapshot.desired else None
        self._remember(snapshot, FailureKey(Verb.PULL, spec_hash or "", ""), error)
        self.review(self._snapshots.snapshot(key))

    def review(self, snapshot: Snapshot) -> None:
        """Report what went wrong since the last review, and what is over."""
        now, open_ = faults_of(snapshot), self._open(snapshot.key)
        for source, error in now.items():
            if source not in open_:
                fault = Fault(source, redactor.clean(error))
                self._begin(snapshot.key, fault, faults.BEGUN.get(source, "it is not as desired"))
        for source, fault in open_.items():
            step_is_over = (
                source not in faults.STEPS or is_at_goal(snapshot) or snapshot.desired is None
            )
            if source not in now and step_is_over:
                self._end(snapshot, fault)

    def _begin(self, key: str, fault: Fault, cause: str) -> None:
        memory = self._store.memory(key)
        self._store.put_memory(key, replace(memory, faults=(*memory.faults, fault)))
        report = self._recorder.tell if fault.logged else self._recorder.note
        report(
            events.SandboxError(sandbox=key, cause=cause, error=fault.error, source=fault.source)
        )

    def _end(self, snapshot: Snapshot, fault: Fault) -> None:
        memory = self._store.memory(snapshot.key)
        left = tuple(other for other in memory.faults if other.source != fault.source)
        self._store.put_memory(snapshot.key, replace(memory, faults=left))
        for event in (events.ActionFailed, events.ActionTimedOut):
            self._recorder.resolve(event, about=f"{snapshot.key} {fault.source}")
        if snapshot.desired is None and snapshot.fate is Fate.DELETED:
            # That its record was taken out is logged, and is no recovery.
            return
        report = self._recorder.tell if fault.logged else self._recorder.note
        cause = faults.OVER.get(fault.source, f"it is {status_of(snapshot)[0]}")
        if snapshot.desired is None:
            cause = "it is no longer declared"
        report(
            events.SandboxRecovered(
                sandbox=snapshot.key, cause=cause, after=fault.error, source=fault.source
            )
        )

    def _open(self, key: str) -> dict[str, Fault]:
        return {fault.source: fault for fault in self._store.memory(key).faults}

    def _remember(
        self,
        snapshot: Snapshot,
        about: FailureKey,
        error: Exception,
        *,
        swap: bool = False,
        wrecked: str = "",
    ) -> Failure:
        # Not the view's time: the step may have taken its whole timeout since.
        now = self._snapshots.now
        failed = Failure(
            about.verb,
            about.spec_hash,
            redactor.clean(str(error)),
            count=1,
            at=now,
            not_before=now,
            target=about.target,
            wrecked=wrecked,
            progress=isinstance(error, Removing),
        )
        memory = policy.after_failure(
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
        """Forget the failed steps: nothing is left to do for the key."""
        self._store.put_memory(key, policy.after_success(self._store.memory(key)))


def _comes_back(snapshot: Snapshot) -> bool:
    """Whether the container that was replaced takes its place again."""
    predecessor = roles_of(snapshot).predecessor
    return predecessor is not None and not policy.is_unstartable(snapshot.memory, predecessor)
