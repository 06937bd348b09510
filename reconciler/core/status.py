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
    from reconciler.core.model import Container, Desired, Snapshot

_GOAL: Final = {
    DesiredState.RUNNING: Status.RUNNING,
    DesiredState.PAUSED: Status.PAUSED,
    DesiredState.STOPPED: Status.STOPPED,
}
# What a reason begins with where a sandbox cannot be probed; the cause and the fix follow.
UNKNOWN_HEALTH: Final = "its health is unknown: "


def is_at_goal(snapshot: Snapshot) -> bool:
    """Whether the sandbox has the status that its record asks for."""
    return snapshot.desired is not None and status_of(snapshot)[0] is _GOAL[snapshot.desired.state]


def status_of(snapshot: Snapshot) -> tuple[Status, str]:
    """The status of the key's sandbox, and a reason that is empty where none is needed.

    What is as desired keeps its status whatever is wrong beside it: a broken env file, or an edit
    that cannot be carried out, is its reason. What cannot be inspected, or is on an engine that
    cannot be asked, keeps its last known status, and is UNKNOWN where it has none.
    """
    current = roles_of(snapshot).current
    status, reason = _observed(snapshot, current)
    if snapshot.blind or snapshot.unseen:
        why = f"the engine cannot be asked: {snapshot.blind}" if snapshot.blind else snapshot.unseen
        return (Status.UNKNOWN, why) if current is None else (status, f"last known; {why}")
    failure = latest_failure(snapshot)
    at_goal = snapshot.desired is not None and status is _GOAL[snapshot.desired.state]
    if failure is not None and not at_goal:
        return Status.ERROR, failure.cause
    if snapshot.held and snapshot.desired is None:
        return Status.ERROR, snapshot.held
    said = reason or (failure.cause if failure else _beside(snapshot, current))
    return status, "; ".join(filter(None, (said, _loss(snapshot))))


def _beside(snapshot: Snapshot, current: Container | None) -> str:
    """What is wrong, though it does not determine the status."""
    problem = snapshot.desired.problem if snapshot.desired else None
    return problem or snapshot.held or unheeded_check(snapshot.desired, current)


def _loss(snapshot: Snapshot) -> str:
    loss = snapshot.memory.loss
    return f"its workspace {loss.volume} vanished, and a new one is empty" if loss else ""


def _observed(snapshot: Snapshot, current: Container | None) -> tuple[Status, str]:
    if current is None:
        return _absent(snapshot)
    match current.phase:
        case Phase.PAUSED:
            return Status.PAUSED, _why_paused(snapshot, current)
        case Phase.RUNNING:
            return _running(snapshot, current)
        case Phase.CREATED | Phase.RESTARTING:
            return _made(snapshot)
        case Phase.EXITED | Phase.DEAD:
            return _ended(snapshot, current)
        case _:
            return Status.MISSING, "the engine is removing it"


def _why_paused(snapshot: Snapshot, current: Container) -> str:
    if snapshot.desired is None or snapshot.desired.state is DesiredState.PAUSED:
        return ""
    return "" if foreign_pause(snapshot, current.id) is None else "others paused it"


def _absent(snapshot: Snapshot) -> tuple[Status, str]:
    problem = snapshot.desired.problem if snapshot.desired else None
    if problem is not None:
        return Status.MISSING if problem in AWAITED else Status.ERROR, problem
    if snapshot.desired is not None and snapshot.hold:
        return Status.MISSING, snapshot.hold
    if snapshot.desired is not None and snapshot.image is ImageState.PULLING:
        return Status.MISSING, f"pulling {snapshot.desired.spec.image}"
    return Status.MISSING, ""


def _running(snapshot: Snapshot, current: Container) -> tuple[Status, str]:
    if snapshot.desired is None or snapshot.desired.spec.health is None:
        return Status.RUNNING, ""
    health = snapshot.health
    unknown = f"{UNKNOWN_HEALTH}{health.unknown}" if health.unknown else ""
    match verdict_of(snapshot, current):
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


def _made(snapshot: Snapshot) -> tuple[Status, str]:
    if _stopped_is_desired(snapshot):
        return Status.STOPPED, "never started"
    return Status.STARTING, ""


def _ended(snapshot: Snapshot, current: Container) -> tuple[Status, str]:
    memory, death = snapshot.memory, snapshot.memory.death
    if _stopped_is_desired(snapshot) and current.phase is Phase.EXITED:
        return Status.STOPPED, ""
    if policy.is_own_stop(memory, current):
        return Status.STARTING, ""
    if death is not None and policy.is_accounted(memory, current):
        tail = f": {death.log_tail[-1]}" if death.log_tail else ""
        return Status.ERROR, death.reason + tail
    return Status.ERROR, f"exit code {current.exit_code}"


def _stopped_is_desired(snapshot: Snapshot) -> bool:
    return snapshot.desired is not None and snapshot.desired.state is DesiredState.STOPPED
