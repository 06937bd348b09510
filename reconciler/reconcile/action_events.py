"""Report a completed action: in the log and the ledger, or in the ledger alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.core.action import Verb
from reconciler.core.failures import failure_of
from reconciler.core.restart import FailureKey
from reconciler.telemetry import events

if TYPE_CHECKING:
    from reconciler.core.action import Action
    from reconciler.core.snapshot import Snapshot
    from reconciler.telemetry.recorder import Recorder


def announce(recorder: Recorder, snapshot: Snapshot, action: Action, seconds: float) -> None:
    """Report a completed action. ``snapshot`` is the one it was decided from."""
    event = _event_of(snapshot, action, seconds)
    if event is None:
        return
    report = recorder.note if _is_part_of_replacement(snapshot, action) else recorder.tell
    report(event)
    if action.verb in {Verb.REMOVE, Verb.REMOVE_VOLUME}:
        recorder.resolve(events.GarbageFailed, about=f"{snapshot.key} {action.target}")
    if error := _rollback_cause(snapshot, action):
        recorder.tell(
            events.SandboxRolledBack(
                sandbox=snapshot.key,
                cause="its replacement could not be started",
                container=action.target,
                error=error,
            )
        )


def _rollback_cause(snapshot: Snapshot, action: Action) -> str:
    """Return why the replacement of the started container failed; empty if it has none."""
    container, desired = snapshot.observed.container(action.container_id), snapshot.desired
    if action.verb is not Verb.START or action.restart or container is None or desired is None:
        return ""
    failed = failure_of(snapshot.memory, FailureKey(Verb.START, desired.spec_hash or "", ""))
    return failed.cause if failed and container.spec_hash != desired.spec_hash else ""


def _is_part_of_replacement(snapshot: Snapshot, action: Action) -> bool:
    """Whether the action is one step of a replacement, which the log reports as a whole."""
    roles = snapshot.roles
    parts = {c.id for c in (roles.successor, roles.predecessor) if c is not None}
    makes_way = action.verb is Verb.RENAME and action.new_name != snapshot.names.current
    within = action.verb is Verb.RENAME and action.container_id in parts
    return makes_way or within


def _event_of(  # noqa: C901, PLR0911 - one case for each verb
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
    """Return the event of a removal: of an orphan, of a replaced container, or a plain one."""
    key, cause, target = snapshot.key, action.cause, action.target
    if snapshot.desired is None:
        if not snapshot.deleted:
            return events.GarbageRemoved(sandbox=key, cause=cause, kind="container", name=target)
        return events.SandboxRemoved(sandbox=key, cause=cause, container=target)
    roles = snapshot.roles
    replaced = roles.predecessor is not None and roles.predecessor.id == action.container_id
    if replaced and roles.current is not None:
        return events.SandboxReplaced(
            sandbox=key,
            cause=cause,
            container=snapshot.names.current,
            container_id=roles.current.id,
            old_container_id=action.container_id,
        )
    return events.SandboxRemoved(sandbox=key, cause=cause, container=target)
