"""What users see of a sandbox: its status, the reason, and its faults.

The log, the ledger and ``status`` all take the faults from here, so that they agree.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from reconciler.core.action import Source, Verb
from reconciler.core.decide import decide
from reconciler.core.failures import foreign_pause, latest_failure, relevant_failures
from reconciler.core.health import Verdict, verdict_of
from reconciler.core.observed import CheckState, Phase
from reconciler.core.restart import is_accounted, is_own_stop
from reconciler.core.snapshot import ImageState
from reconciler.core.spec import DesiredState

if TYPE_CHECKING:
    from reconciler.core.observed import Container
    from reconciler.core.snapshot import Desired, Snapshot


class Status(StrEnum):
    """The status of a sandbox."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPED = "STOPPED"
    ERROR = "ERROR"
    MISSING = "MISSING"
    UNKNOWN = "UNKNOWN"


_GOAL: Final = {
    DesiredState.RUNNING: Status.RUNNING,
    DesiredState.PAUSED: Status.PAUSED,
    DesiredState.STOPPED: Status.STOPPED,
}
# Begins the reason of a sandbox that cannot be probed; the cause and the fix follow.
UNKNOWN_HEALTH: Final = "health unknown: "

# Sources of blockers that need the record, or what belongs to it, to be changed.
_OF_RECORD: Final = (Source.INSTANCE, Source.ENV_FILE, Source.PORTS)
# The sources of a fault are these, and the verbs of actions that failed.
STEPS: Final = frozenset(map(str, Verb))
# The cause that is logged when a fault begins. A failed action logs its own.
BEGUN: Final[dict[str, str]] = {
    Source.RECORD: "its record is invalid; the previous one stays in force",
    Source.ENV_FILE: "its env_file cannot be used",
    Source.PORTS: "it has no host port",
    Source.INSTANCE: "its container and workspace are of another instance",
    Source.DISK: "a disk is too full to create it",
    Source.INSPECT: "its containers cannot be inspected",
}
# The cause that is logged when it is over. A failed action is over once the sandbox is as desired.
OVER: Final[dict[str, str]] = {
    Source.RECORD: "its record is valid",
    Source.ENV_FILE: "its env_file can be used",
    Source.PORTS: "it has its host ports",
    Source.INSTANCE: "its container and workspace are of this instance",
    Source.DISK: "no disk is too full to create it",
    Source.INSPECT: "its containers can be inspected",
}


def faults_of(snapshot: Snapshot) -> dict[str, str]:
    """Return what keeps the sandbox from its desired state now, by source."""
    faults = {
        str(blocker.source): blocker.reason
        for blocker in snapshot.blockers
        if blocker.source in BEGUN and blocker.is_fault
    }
    # A full disk is no fault of a sandbox that needs nothing new.
    if Source.DISK in faults and decide(snapshot).waiting_for != faults[Source.DISK]:
        del faults[Source.DISK]
    if snapshot.desired is not None or snapshot.deleted:
        faults |= {str(failure.verb): failure.cause for failure in relevant_failures(snapshot)}
    return faults


def is_at_goal(snapshot: Snapshot) -> bool:
    """Whether the sandbox has the status that its record asks for."""
    return snapshot.desired is not None and status_of(snapshot)[0] is _GOAL[snapshot.desired.state]


def status_of(snapshot: Snapshot) -> tuple[Status, str]:
    """Return the sandbox's status, and a reason, which is empty if none is needed.

    A sandbox that is as desired keeps its status whatever else is wrong, such as a broken env file
    or an edit that cannot be carried out: that becomes the reason. While the engine is unreachable,
    or its answer unreadable, the last known status stays, and is UNKNOWN if there is none.
    """
    current = snapshot.roles.current
    status, reason = _status_of_container(snapshot, current)
    unreachable = snapshot.reason(Source.ENGINE)
    if unreachable or snapshot.reason(Source.INSPECT):
        why = f"the engine is unreachable: {unreachable}" if unreachable else ""
        why = why or snapshot.reason(Source.INSPECT)
        return (Status.UNKNOWN, why) if current is None else (status, f"last known; {why}")
    failure = latest_failure(snapshot)
    at_goal = snapshot.desired is not None and status is _GOAL[snapshot.desired.state]
    if failure is not None and not at_goal:
        return Status.ERROR, failure.cause
    invalid = snapshot.reason(Source.RECORD)
    if invalid and snapshot.desired is None:
        return Status.ERROR, invalid
    reason = (
        reason
        or (failure.cause if failure else "")
        or snapshot.reason(*_OF_RECORD)
        or invalid
        or unheeded_check(snapshot.desired, current)
    )
    loss = snapshot.memory.loss
    lost = ""
    if loss is not None:
        lost = (
            f"its workspace {loss.volume} was removed; the new one is empty: "
            f"`reconciler adopt {snapshot.key}` accepts it"
        )
    return status, "; ".join(filter(None, (reason, lost)))


def _status_of_container(snapshot: Snapshot, current: Container | None) -> tuple[Status, str]:
    if current is None:
        return _status_without_container(snapshot)
    state = snapshot.desired.state if snapshot.desired else None
    match current.phase:
        case Phase.PAUSED:
            wanted = state in {None, DesiredState.PAUSED}
            ours = wanted or foreign_pause(snapshot, current.id) is None
            return Status.PAUSED, "" if ours else "others paused it"
        case Phase.RUNNING:
            return _status_of_running(snapshot, current)
        case Phase.CREATED | Phase.RESTARTING:
            stopped = state is DesiredState.STOPPED
            return (Status.STOPPED, "never started") if stopped else (Status.STARTING, "")
        case Phase.EXITED | Phase.DEAD:
            return _status_of_exited(snapshot, current)
        case _:
            return Status.MISSING, "the engine is removing it"


def _status_without_container(snapshot: Snapshot) -> tuple[Status, str]:
    if snapshot.desired is None:
        return Status.MISSING, ""
    if blocker := snapshot.blocker(Verb.CREATE):
        is_error = blocker.is_fault and blocker.source in _OF_RECORD
        return Status.ERROR if is_error else Status.MISSING, blocker.reason
    pulling = snapshot.image is ImageState.PULLING
    return Status.MISSING, f"pulling {snapshot.desired.spec.image}" if pulling else ""


def _status_of_running(snapshot: Snapshot, current: Container) -> tuple[Status, str]:
    if snapshot.desired is None or snapshot.desired.spec.health is None:
        return Status.RUNNING, ""
    health = snapshot.health
    unknown = f"{UNKNOWN_HEALTH}{health.unknown}" if health.unknown else ""
    match verdict_of(snapshot.health, current):
        case Verdict.GOOD:
            return Status.RUNNING, unknown
        case Verdict.UNHEALTHY:
            return Status.ERROR, f"unhealthy: {health.reason}"
        case Verdict.BAD:
            return Status.STARTING, unknown or health.reason
        case _:
            return Status.STARTING, unknown or "not probed yet"


def _status_of_exited(snapshot: Snapshot, current: Container) -> tuple[Status, str]:
    memory, death, desired = snapshot.memory, snapshot.memory.death, snapshot.desired
    stopped = desired is not None and desired.state is DesiredState.STOPPED
    if stopped and current.phase is Phase.EXITED:
        return Status.STOPPED, ""
    # The daemon stopped one that has a successor, whether or not that is noted yet.
    replaced = snapshot.roles.successor is not None
    if is_own_stop(memory, current) or (replaced and not is_accounted(memory, current)):
        return Status.STARTING, ""
    if death is not None and is_accounted(memory, current):
        tail = f": {death.log_tail[-1]}" if death.log_tail else ""
        return Status.ERROR, death.reason + tail
    return Status.ERROR, f"exit code {current.exit_code}"


def unheeded_check(desired: Desired | None, container: Container | None) -> str:
    """Return a warning if the image's HEALTHCHECK fails and no probe uses it; else nothing."""
    check = container.check if container and container.phase is Phase.RUNNING else None
    if check is None or check.state is not CheckState.UNHEALTHY:
        return ""
    if desired is None or desired.spec.health is not None:
        return ""
    return (
        "its image's HEALTHCHECK fails: set `health: {kind: docker}` to act on it, or "
        "`healthcheck: none` to disable it"
    )
