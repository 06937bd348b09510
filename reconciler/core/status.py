"""What users see of a record, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.core import policy
from reconciler.core.lifecycle import verdict_of
from reconciler.core.model import ImageState, Phase, Status, Verdict
from reconciler.core.roles import roles_of
from reconciler.core.spec import DesiredState

if TYPE_CHECKING:
    from reconciler.core.model import Container, View


def status_of(view: View) -> tuple[Status, str]:  # noqa: PLR0911 - a table, one row a return
    """The status of the key's sandbox, and a reason that is empty where none is needed."""
    failure = view.memory.failure
    current = roles_of(view).current
    if failure is not None:
        return Status.ERROR, failure.cause
    if current is None:
        return _absent(view)
    match current.phase:
        case Phase.PAUSED:
            return Status.PAUSED, ""
        case Phase.RUNNING:
            return _running(view, current)
        case Phase.CREATED | Phase.RESTARTING:
            return _made(view)
        case Phase.EXITED | Phase.DEAD:
            return _ended(view, current)
        case _:
            return Status.MISSING, "the engine is removing it"


def _absent(view: View) -> tuple[Status, str]:
    if view.desired is not None and view.desired.problem is not None:
        return Status.ERROR, view.desired.problem
    if view.desired is not None and view.hold:
        return Status.MISSING, view.hold
    if view.desired is not None and view.image is ImageState.PULLING:
        return Status.MISSING, f"pulling {view.desired.spec.image}"
    return Status.MISSING, ""


def _running(view: View, current: Container) -> tuple[Status, str]:
    if view.desired is not None and view.desired.problem is not None:
        return Status.ERROR, view.desired.problem
    if view.desired is None or view.desired.spec.health is None:
        return Status.RUNNING, ""
    health = view.health
    unknown = f"its health is unknown: {health.unknown}" if health.unknown else ""
    match verdict_of(view, current):
        case Verdict.GOOD:
            return Status.RUNNING, unknown
        case Verdict.UNHEALTHY:
            return Status.ERROR, f"unhealthy: {health.reason}"
        case Verdict.BAD:
            return Status.STARTING, unknown or health.reason
        case _:
            return Status.STARTING, unknown or "not probed yet"


def _made(view: View) -> tuple[Status, str]:
    if _stopped_is_desired(view):
        return Status.STOPPED, "never started"
    return Status.STARTING, ""


def _ended(view: View, current: Container) -> tuple[Status, str]:
    memory, death = view.memory, view.memory.death
    if _stopped_is_desired(view) and current.phase is Phase.EXITED:
        return Status.STOPPED, ""
    if policy.is_own_stop(memory, current):
        return Status.STARTING, ""
    if death is not None and policy.is_accounted(memory, current):
        tail = f": {death.log_tail[-1]}" if death.log_tail else ""
        return Status.ERROR, death.reason + tail
    return Status.ERROR, f"exit code {current.exit_code}"


def _stopped_is_desired(view: View) -> bool:
    return view.desired is not None and view.desired.state is DesiredState.STOPPED
