"""Report a completed action: in the log and the ledger, or in the ledger alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.core import policy
from reconciler.core.model import FailureKey, Fate, Verb
from reconciler.core.replacement import names_of, roles_of
from reconciler.telemetry import events

if TYPE_CHECKING:
    from reconciler.core.model import Action, Snapshot
    from reconciler.telemetry.recorder import Recorder


def announce(recorder: Recorder, snapshot: Snapshot, action: Action, seconds: float) -> None:
    """Report a completed action. ``snapshot`` is what it was decided from."""
    event = _event_of(snapshot, action, seconds)
    if event is None:
        return
    report = recorder.note if _is_a_detail(snapshot, action) else recorder.tell
    report(event)
    if action.verb in {Verb.REMOVE, Verb.REMOVE_VOLUME}:
        recorder.resolve(events.GarbageFailed, about=f"{snapshot.key} {action.target}")
    error = _undone(snapshot, action)
    if error:
        recorder.tell(
            events.SandboxRolledBack(
                sandbox=snapshot.key,
                cause="the container that should replace it could not be started",
                container=action.target,
                error=error,
            )
        )


def _undone(snapshot: Snapshot, action: Action) -> str:
    """Return why the replacement of the container that was started now had been given up."""
    container, desired = snapshot.observed.container(action.container_id), snapshot.desired
    if action.verb is not Verb.START or action.restart or container is None or desired is None:
        return ""
    failed = policy.failure_of(snapshot.memory, FailureKey(Verb.START, desired.spec_hash or "", ""))
    return failed.cause if failed and container.spec_hash != desired.spec_hash else ""


def _is_a_detail(snapshot: Snapshot, action: Action) -> bool:
    """Whether the action is a part of a replacement, which the log reports as a whole."""
    roles = roles_of(snapshot)
    parts = {c.id for c in (roles.successor, roles.predecessor) if c is not None}
    makes_way = action.verb is Verb.RENAME and action.new_name != names_of(snapshot).current
    within = action.verb is Verb.RENAME and action.container_id in parts
    return makes_way or within


def _event_of(  # noqa: C901, PLR0911 - one case a verb
    snapshot: Snapshot, action: Action, seconds: float
) -> events.SandboxEvent | None:
    key, cause, target = snapshot.key, action.cause, action.target
    match action.verb:
        case Verb.CREATE_VOLUME:
            return events.VolumeCreated(sandbox=key, cause=cause, volume=target)
        case Verb.REMOVE_VOLUME:
            return events.VolumeRemoved(sandbox=key, cause=cause, volume=target)
        case Verb.CREATE:
            assert snapshot.desired is not None
            image = snapshot.desired.spec.image
            return events.SandboxCreated(
                sandbox=key, cause=cause, container=target, image=image, seconds=seconds
            )
        case Verb.START:
            return events.SandboxStarted(
                sandbox=key, cause=cause, container=target, seconds=seconds
            )
        case Verb.STOP:
            return events.SandboxStopped(
                sandbox=key, cause=cause, container=target, seconds=seconds
            )
        case Verb.PAUSE:
            return events.SandboxPaused(sandbox=key, cause=cause, container=target)
        case Verb.UNPAUSE:
            return events.SandboxResumed(sandbox=key, cause=cause, container=target)
        case Verb.UPDATE:
            return events.SandboxUpdated(sandbox=key, cause=cause, container=target)
        case Verb.RENAME:
            return events.SandboxRenamed(sandbox=key, cause=cause, old=target, new=action.new_name)
        case Verb.REMOVE:
            return _removal(snapshot, action)
    return None


def _removal(snapshot: Snapshot, action: Action) -> events.SandboxEvent:
    """Return what the removal of a container means: garbage, a finished replacement, or no more."""
    key, cause, target = snapshot.key, action.cause, action.target
    if snapshot.desired is None:
        if snapshot.fate is Fate.UNKNOWN:
            return events.GarbageRemoved(sandbox=key, cause=cause, kind="container", name=target)
        return events.SandboxRemoved(sandbox=key, cause=cause, container=target)
    roles = roles_of(snapshot)
    replaced = roles.predecessor is not None and roles.predecessor.id == action.container_id
    if replaced and roles.current is not None:
        return events.SandboxReplaced(
            sandbox=key,
            cause=cause,
            container=names_of(snapshot).current,
            container_id=roles.current.id,
            old_container_id=action.container_id,
        )
    return events.SandboxRemoved(sandbox=key, cause=cause, container=target)
