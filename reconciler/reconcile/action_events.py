"""How a step that was done is told: to the log and the ledger, or to the ledger alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.core import policy
from reconciler.core.model import FailureKey, Fate, Verb
from reconciler.core.replacement import names_of, roles_of
from reconciler.telemetry.events import Event

if TYPE_CHECKING:
    from reconciler.core.model import Action, Snapshot
    from reconciler.telemetry.recorder import Recorder

_EVENTS: Final = {
    Verb.CREATE_VOLUME: Event.VOLUME_CREATED,
    Verb.CREATE: Event.SANDBOX_CREATED,
    Verb.START: Event.SANDBOX_STARTED,
    Verb.STOP: Event.SANDBOX_STOPPED,
    Verb.PAUSE: Event.SANDBOX_PAUSED,
    Verb.UNPAUSE: Event.SANDBOX_RESUMED,
    Verb.UPDATE: Event.SANDBOX_UPDATED,
    Verb.RENAME: Event.SANDBOX_RENAMED,
    Verb.REMOVE: Event.SANDBOX_REMOVED,
    Verb.REMOVE_VOLUME: Event.VOLUME_REMOVED,
}


def announce(recorder: Recorder, snapshot: Snapshot, action: Action, seconds: float) -> None:
    """Report a step that was done. ``snapshot`` is what it was decided from."""
    event = _special_event(snapshot, action) or _EVENTS.get(action.verb)
    if event is None:
        return
    report = recorder.note if _is_a_detail(snapshot, action) else recorder.tell
    report(event, snapshot.key, action.cause, **_fields(event, snapshot, action, seconds))
    if action.verb in {Verb.REMOVE, Verb.REMOVE_VOLUME}:
        recorder.resolve(Event.GARBAGE_FAILED, about=f"{snapshot.key} {action.target}")
    error = _undone(snapshot, action)
    if error:
        recorder.tell(
            Event.SANDBOX_ROLLED_BACK,
            snapshot.key,
            "the container that should replace it could not be started",
            container=action.target,
            error=error,
        )


def _undone(snapshot: Snapshot, action: Action) -> str:
    """Why the replacement of the container that was started now had been given up."""
    container, desired = snapshot.observed.container(action.container_id), snapshot.desired
    if action.verb is not Verb.START or action.restart or container is None or desired is None:
        return ""
    failed = policy.failure_of(snapshot.memory, FailureKey(Verb.START, desired.spec_hash or "", ""))
    return failed.cause if failed and container.spec_hash != desired.spec_hash else ""


def _special_event(snapshot: Snapshot, action: Action) -> Event | None:
    """What the removal of a container is told as, where it is more than that."""
    if action.verb is not Verb.REMOVE:
        return None
    if snapshot.desired is None:
        return Event.GARBAGE_REMOVED if snapshot.fate is Fate.UNKNOWN else None
    predecessor = roles_of(snapshot).predecessor
    replaced = predecessor is not None and predecessor.id == action.container_id
    return Event.SANDBOX_REPLACED if replaced else None


def _is_a_detail(snapshot: Snapshot, action: Action) -> bool:
    """Whether it is a part of a replacement, which the log reports as a whole."""
    roles = roles_of(snapshot)
    parts = {c.id for c in (roles.successor, roles.predecessor) if c is not None}
    makes_way = action.verb is Verb.RENAME and action.new_name != names_of(snapshot).current
    within = action.verb is Verb.RENAME and action.container_id in parts
    return makes_way or within


def _fields(event: Event, snapshot: Snapshot, action: Action, seconds: float) -> dict[str, object]:
    of_container: dict[str, object] = {"container": action.target}
    match event:
        case Event.VOLUME_CREATED | Event.VOLUME_REMOVED:
            return {"volume": action.target}
        case Event.SANDBOX_CREATED:
            assert snapshot.desired is not None
            return {**of_container, "image": snapshot.desired.spec.image, "seconds": seconds}
        case Event.SANDBOX_STARTED | Event.SANDBOX_STOPPED:
            return {**of_container, "seconds": seconds}
        case Event.SANDBOX_RENAMED:
            return {"old": action.target, "new": action.new_name}
        case Event.GARBAGE_REMOVED:
            return {"kind": "container", "name": action.target}
    return _replaced(snapshot, action) if event is Event.SANDBOX_REPLACED else of_container


def _replaced(snapshot: Snapshot, action: Action) -> dict[str, object]:
    current = roles_of(snapshot).current
    return {
        "container": names_of(snapshot).current,
        "container_id": current.id if current else None,
        "old_container_id": action.container_id,
    }
