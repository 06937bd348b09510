"""What is wrong with each sandbox: remembered, and reported when it begins and when it is over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core import faults, policy
from reconciler.core.errors import Forbidden, Removing, Wrecked
from reconciler.core.faults import faults_of
from reconciler.core.model import Concern, Failure, Fate, Fault, Verb
from reconciler.core.replacement import roles_of
from reconciler.core.spec import RestartSpec
from reconciler.core.status import is_at_goal, status_of
from reconciler.core.steps import concern, still_there
from reconciler.telemetry.events import Event
from reconciler.telemetry.redact import redactor

if TYPE_CHECKING:
    from reconciler.core.model import Action, View
    from reconciler.observe.snapshots import Views
    from reconciler.reconcile.circuit_breaker import Lanes
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Reporter

_DEFAULT_RESTART: Final = RestartSpec()


class Failures:
    """The failures and faults of every key, in the store's memory of it.

    A failure is a step that could not be done; it sets when the step is due again. A fault is what
    is reported: ``sandbox.error`` when it begins and ``sandbox.recovered`` when it is over,
    whatever its source. A step that fails again is reported as ``action.failed``.
    """

    def __init__(self, *, store: Store, views: Views, lanes: Lanes, reporter: Reporter) -> None:
        self._store = store
        self._views = views
        self._lanes = lanes
        self._reporter = reporter

    def note(self, view: View, action: Action, error: Exception, event: Event) -> None:
        """Remember that a step failed, and report it unless the engine is only slow at it.

        ``event`` is for the step's repetitions.
        """
        about = concern(view, action)
        swap = action.verb is Verb.START and not about.target and _comes_back(view)
        wrecked = action.container_id if isinstance(error, Wrecked) else ""
        failure = self._remember(view, about, error, swap=swap, wrecked=wrecked)
        if failure.progress:
            return
        retry_in = round(failure.not_before - failure.at, 1)
        if view.desired is None and view.fate is Fate.UNKNOWN:
            self._report_garbage(view.key, action, failure.cause, retry_in)
            return
        source = str(action.verb)
        # A step that hangs, or is forbidden, for every sandbox is logged once, of the engine.
        is_rule = isinstance(error, Forbidden) and error.part
        logged = action.verb not in self._lanes.hung() and not is_rule
        if source not in self._open(view.key):
            self._begin(view.key, Fault(source, failure.cause, logged), action.cause)
        elif logged:
            self._reporter.complain(
                event,
                about=f"{view.key} {source}",
                sandbox=view.key,
                cause=action.cause,
                action=source,
                error=failure.cause,
                retry_in=retry_in,
            )

    def _report_garbage(self, key: str, action: Action, error: str, retry_in: float) -> None:
        self._reporter.complain(
            Event.GARBAGE_FAILED,
            about=f"{key} {action.target}",
            sandbox=key,
            cause=action.cause,
            kind="volume" if action.verb is Verb.REMOVE_VOLUME else "container",
            name=action.target,
            error=error,
            retry_in=retry_in,
        )

    def note_pull(self, key: str, error: Exception) -> None:
        """Remember that the image which the key waits for could not be pulled."""
        view = self._views.view(key)
        spec_hash = view.desired.spec_hash if view.desired else None
        self._remember(view, Concern(Verb.PULL, spec_hash or "", ""), error)
        self.review(self._views.view(key))

    def review(self, view: View) -> None:
        """Report what went wrong since the last review, and what is over."""
        now, open_ = faults_of(view), self._open(view.key)
        for source, error in now.items():
            if source not in open_:
                fault = Fault(source, redactor.clean(error))
                self._begin(view.key, fault, faults.BEGUN.get(source, "it is not as desired"))
        for source, fault in open_.items():
            step_is_over = source not in faults.STEPS or is_at_goal(view) or view.desired is None
            if source not in now and step_is_over:
                self._end(view, fault)

    def _begin(self, key: str, fault: Fault, cause: str) -> None:
        memory = self._store.memory(key)
        self._store.put_memory(key, replace(memory, faults=(*memory.faults, fault)))
        report = self._reporter.tell if fault.logged else self._reporter.note
        report(Event.SANDBOX_ERROR, key, cause, error=fault.error, source=fault.source)

    def _end(self, view: View, fault: Fault) -> None:
        memory = self._store.memory(view.key)
        left = tuple(other for other in memory.faults if other.source != fault.source)
        self._store.put_memory(view.key, replace(memory, faults=left))
        for event in (Event.ACTION_FAILED, Event.ACTION_TIMED_OUT):
            self._reporter.resolve(event, about=f"{view.key} {fault.source}")
        if view.desired is None and view.fate is Fate.DELETED:
            # That its record was taken out is logged, and is no recovery.
            return
        report = self._reporter.tell if fault.logged else self._reporter.note
        cause = faults.OVER.get(fault.source, f"it is {status_of(view)[0]}")
        if view.desired is None:
            cause = "it is no longer declared"
        report(Event.SANDBOX_RECOVERED, view.key, cause, after=fault.error, source=fault.source)

    def _open(self, key: str) -> dict[str, Fault]:
        return {fault.source: fault for fault in self._store.memory(key).faults}

    def _remember(
        self, view: View, about: Concern, error: Exception, *, swap: bool = False, wrecked: str = ""
    ) -> Failure:
        # Not the view's time: the step may have taken its whole timeout since.
        now = self._views.now
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
            self._store.memory(view.key),
            failed,
            view.desired.spec.restart if view.desired else _DEFAULT_RESTART,
            view.key,
            swap=swap,
            relevant=still_there(view),
        )
        self._store.put_memory(view.key, memory)
        return memory.failures[-1]

    def forget(self, key: str) -> None:
        """Forget the failed steps: nothing is left to do for the key."""
        self._store.put_memory(key, policy.after_success(self._store.memory(key)))


def _comes_back(view: View) -> bool:
    """Whether the container that was replaced takes its place again."""
    predecessor = roles_of(view).predecessor
    return predecessor is not None and not policy.is_wrecked(view.memory, predecessor)
