"""What users see of a record, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.core import policy
from reconciler.core.lifecycle import verdict_of
from reconciler.core.model import AWAITED, CheckState, ImageState, Phase, Status, Verdict
from reconciler.core.replacement import roles_of
from reconciler.core.spec import DesiredState
from reconciler.core.steps import foreign_pause, latest_failure

if TYPE_CHECKING:
    from reconciler.core.model import Container, Desired, View

_GOAL: Final = {
    DesiredState.RUNNING: Status.RUNNING,
    DesiredState.PAUSED: Status.PAUSED,
    DesiredState.STOPPED: Status.STOPPED,
}
# What a reason begins with where a sandbox cannot be probed; the cause and the fix follow.
UNKNOWN_HEALTH: Final = "its health is unknown: "


def is_at_goal(view: View) -> bool:
    """Whether the sandbox has the status that its record asks for."""
    return view.desired is not None and status_of(view)[0] is _GOAL[view.desired.state]


def status_of(view: View) -> tuple[Status, str]:
    """The status of the key's sandbox, and a reason that is empty where none is needed.

    What is as desired keeps its status whatever is wrong beside it: a broken env file, or an edit
    that cannot be carried out, is its reason. What cannot be inspected, or is on an engine that
    cannot be asked, keeps its last known status, and is UNKNOWN where it has none.
    """
    current = roles_of(view).current
    status, reason = _observed(view, current)
    if view.blind or view.unseen:
        why = f"the engine cannot be asked: {view.blind}" if view.blind else view.unseen
        return (Status.UNKNOWN, why) if current is None else (status, f"last known; {why}")
    failure = latest_failure(view)
    at_goal = view.desired is not None and status is _GOAL[view.desired.state]
    if failure is not None and not at_goal:
        return Status.ERROR, failure.cause
    if view.held and view.desired is None:
        return Status.ERROR, view.held
    said = reason or (failure.cause if failure else _beside(view, current))
    return status, "; ".join(filter(None, (said, _loss(view))))


def _beside(view: View, current: Container | None) -> str:
    """What is wrong, though it does not determine the status."""
    problem = view.desired.problem if view.desired else None
    return problem or view.held or unheeded_check(view.desired, current)


def _loss(view: View) -> str:
    loss = view.memory.loss
    return f"its workspace {loss.volume} vanished, and a new one is empty" if loss else ""


def _observed(view: View, current: Container | None) -> tuple[Status, str]:
    if current is None:
        return _absent(view)
    match current.phase:
        case Phase.PAUSED:
            return Status.PAUSED, _why_paused(view, current)
        case Phase.RUNNING:
            return _running(view, current)
        case Phase.CREATED | Phase.RESTARTING:
            return _made(view)
        case Phase.EXITED | Phase.DEAD:
            return _ended(view, current)
        case _:
            return Status.MISSING, "the engine is removing it"


def _why_paused(view: View, current: Container) -> str:
    if view.desired is None or view.desired.state is DesiredState.PAUSED:
        return ""
    return "" if foreign_pause(view, current.id) is None else "others paused it"


def _absent(view: View) -> tuple[Status, str]:
    problem = view.desired.problem if view.desired else None
    if problem is not None:
        return Status.MISSING if problem in AWAITED else Status.ERROR, problem
    if view.desired is not None and view.hold:
        return Status.MISSING, view.hold
    if view.desired is not None and view.image is ImageState.PULLING:
        return Status.MISSING, f"pulling {view.desired.spec.image}"
    return Status.MISSING, ""


def _running(view: View, current: Container) -> tuple[Status, str]:
    if view.desired is None or view.desired.spec.health is None:
        return Status.RUNNING, ""
    health = view.health
    unknown = f"{UNKNOWN_HEALTH}{health.unknown}" if health.unknown else ""
    match verdict_of(view, current):
        case Verdict.GOOD:
            return Status.RUNNING, unknown
        case Verdict.UNHEALTHY:
            return Status.ERROR, f"unhealthy: {health.reason}"
        case Verdict.BAD:
            return Status.STARTING, unknown or health.reason
        case _:
            return Status.STARTING, unknown or "not probed yet"


def unheeded_check(desired: Desired | None, container: Container | None) -> str:
    """Why the image's own HEALTHCHECK needs attention: it fails, and no probe uses it."""
    check = container.check if container and container.phase is Phase.RUNNING else None
    if check is None or check.state is not CheckState.UNHEALTHY:
        return ""
    if desired is None or desired.spec.health is not None:
        return ""
    return (
        "its image's HEALTHCHECK fails: `health: {kind: docker}` acts on it, `healthcheck: none` "
        "switches it off"
    )


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
