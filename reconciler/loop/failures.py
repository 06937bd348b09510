"""What could not be done: remembered with when it is due again, and said once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.core import policy
from reconciler.core.errors import Removing, Wrecked
from reconciler.core.model import Concern, Failure, Fate, Verb
from reconciler.core.roles import roles_of
from reconciler.core.spec import RestartSpec
from reconciler.core.steps import concern, still_there
from reconciler.service.events import Event
from reconciler.service.redact import redactor

if TYPE_CHECKING:
    from reconciler.core.model import Action, View
    from reconciler.loop.lanes import Lanes
    from reconciler.loop.reporter import Reporter
    from reconciler.loop.views import Views
    from reconciler.store.store import Store

_DEFAULT_RESTART: Final = RestartSpec()


class Failures:
    """The failures of every key, in the store's memory of it."""

    def __init__(self, *, store: Store, views: Views, lanes: Lanes, reporter: Reporter) -> None:
        self._store = store
        self._views = views
        self._lanes = lanes
        self._reporter = reporter

    def note(self, view: View, action: Action, error: Exception, event: Event) -> None:
        """Remember that the step failed, and report it unless the engine is only slow at it."""
        swap = action.verb is Verb.START and roles_of(view).predecessor is not None
        wrecked = action.container_id if isinstance(error, Wrecked) else ""
        failure = self._remember(view, concern(view, action), error, swap=swap, wrecked=wrecked)
        if failure.progress:
            return
        told = Event.SANDBOX_ROLLED_BACK if swap else Event.SANDBOX_ERROR
        if action.verb in self._lanes.hung():
            # Said of the engine, once; the sandbox's own story has it all the same.
            self._reporter.note(told, view.key, action.cause, error=str(error))
            return
        what = {"action": str(action.verb)}
        if view.desired is None and view.fate is Fate.UNKNOWN:
            event = Event.GARBAGE_FAILED
            kind = "volume" if action.verb is Verb.REMOVE_VOLUME else "container"
            what = {"kind": kind, "name": action.target}
        self._reporter.complain(
            event,
            about=f"{view.key} {action.verb} {error}",
            sandbox=view.key,
            cause=action.cause,
            **what,
            error=str(error),
            retry_in=round(failure.not_before - failure.at, 1),
        )
        if failure.count == 1:
            self._reporter.tell(told, view.key, action.cause, error=str(error))

    def note_pull(self, key: str, error: Exception) -> None:
        """The image that the key waits for could not be had; the puller has said so."""
        view = self._views.view(key)
        spec_hash = view.desired.spec_hash if view.desired else None
        self._remember(view, Concern(Verb.PULL, spec_hash or "", ""), error)

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

    def forget(self, view: View) -> None:
        """The key is as desired: what failed on the way is over."""
        failure = view.memory.failure
        self._store.put_memory(view.key, policy.after_success(view.memory))
        if failure is not None:
            self._reporter.tell(
                Event.SANDBOX_RECOVERED, view.key, "it is as desired", after=failure.cause
            )
