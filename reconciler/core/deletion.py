"""Decide what to delete: containers of deleted records, orphans, expired volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.core.action import Action, Decision, Source, Verb, earliest, step_on
from reconciler.core.failures import failure_key, failure_of, gated
from reconciler.core.observed import Phase

if TYPE_CHECKING:
    from reconciler.core.snapshot import Snapshot


def delete_unwanted(snapshot: Snapshot) -> Decision:
    """Return the next step for a key without a record."""
    waits = []
    circuits = {b.verb for b in snapshot.blockers if b.source is Source.CIRCUIT}
    for container in snapshot.observed.containers:
        since = snapshot.orphans.containers.get(container.id)
        due = _removal_due(snapshot, container.id, since, snapshot.gc_grace)
        due = snapshot.now if snapshot.deleted else due
        cause = "its record was deleted" if snapshot.deleted else "no record wants it"
        decision = Decision(wait_until=due, waiting_for="gc_grace has not expired")
        if due is not None and due <= snapshot.now:
            # After a failed stop, or while its circuit is open, the container is removed directly.
            refused = failure_of(snapshot.memory, failure_key(Verb.STOP, container))
            may_stop = refused is None and Verb.STOP not in circuits
            stops = snapshot.deleted and container.phase is Phase.RUNNING and may_stop
            verb = Verb.STOP if stops else Verb.REMOVE
            decision = gated(snapshot, step_on(verb, container, cause))
        if decision.action is not None:
            return decision
        waits.append(decision)
    return earliest(waits) if waits else collect_volumes(snapshot)


def collect_volumes(snapshot: Snapshot) -> Decision:
    """Return the removal of a volume whose retention has expired, or the wait for the next one."""
    in_use = {name for container in snapshot.observed.containers for name in container.volumes}
    waits = []
    for volume in snapshot.surplus_volumes:
        if volume.adopted or volume.name in in_use:
            continue
        since = snapshot.orphans.volumes.get(volume.name)
        retain = snapshot.orphans.retain.get(volume.name)
        due = _removal_due(snapshot, volume.name, since, retain)
        if due is not None and due <= snapshot.now:
            action = Action(Verb.REMOVE_VOLUME, volume.name, "its retention has expired")
            return gated(snapshot, Decision(action))
        waits.append(Decision(wait_until=due))
    return earliest(waits)


def _removal_due(
    snapshot: Snapshot, orphan: str, since: float | None, keep: float | None
) -> float | None:
    """Return when an orphan may be removed, or None for not before something changes."""
    if since is None or keep is None:
        return None
    return since + keep if snapshot.may_collect and orphan not in snapshot.orphans.held else None
