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
    roles, memory, desired = snapshot.roles, snapshot.memory, snapshot.desired
    # The log reports a replacement as a whole, the ledger each of its renames too.
    swapped = {c.id for c in (roles.successor, roles.predecessor) if c is not None}
    makes_way = action.new_name != snapshot.names.current
    is_part = action.verb is Verb.RENAME and (makes_way or action.container_id in swapped)
    (recorder.note if is_part else recorder.tell)(event)
    if action.verb in {Verb.REMOVE, Verb.REMOVE_VOLUME}:
        recorder.resolve(events.GarbageFailed, about=f"{snapshot.key} {action.target}")
    if action.verb is not Verb.START or action.restart or desired is None:
        return
    container = snapshot.observed.container(action.container_id)
    failed = failure_of(memory, FailureKey(Verb.START, desired.spec_hash or "", ""))
    if failed and failed.cause and container and container.spec_hash != desired.spec_hash:
        recorder.tell(
            events.SandboxRolledBack(
                sandbox=snapshot.key,
                cause="its replacement could not be started",
                container=action.target,
                error=failed.cause,
            )
        )


def _event_of(  # noqa: C901, PLR0911 - one case for each verb
    snapshot: Snapshot, action: Action, seconds: float
) -> events.SandboxEvent | None:
    key, cause, target = snapshot.key, action.cause, action.target
    current = snapshot.roles.current
    predecessor = snapshot.roles.predecessor and snapshot.roles.predecessor.id
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
        case Verb.REMOVE if snapshot.desired is None and not snapshot.deleted:
            return events.GarbageRemoved(sandbox=key, cause=cause, kind="container", name=target)
        case Verb.REMOVE if snapshot.desired and current and predecessor == action.container_id:
            return events.SandboxReplaced(
                sandbox=key,
                cause=cause,
                container=snapshot.names.current,
                container_id=current.id,
                old_container_id=predecessor,
            )
        case Verb.REMOVE:
            return events.SandboxRemoved(sandbox=key, cause=cause, container=target)
    return None
