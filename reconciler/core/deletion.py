"""The decision about what no record asks for: a record's remains, garbage, surplus volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.core import policy
from reconciler.core.model import Action, Decision, Fate, Phase, Verb
from reconciler.core.replacement import surplus_volumes
from reconciler.core.steps import earliest, failure_key, gated, step_on

if TYPE_CHECKING:
    from reconciler.core.model import Container, Snapshot


def unwanted(snapshot: Snapshot) -> Decision:
    """The next step for a key that has no record."""
    waits = []
    for container in snapshot.observed.containers:
        due = _removal_due(snapshot, container)
        decision = Decision(wait_until=due, waiting_for="the grace of what belongs to no record")
        if due is not None and due <= snapshot.now:
            decision = gated(snapshot, _take_away(snapshot, container))
        if decision.action is not None:
            return decision
        waits.append(decision)
    if waits:
        return earliest(waits)
    return collect_volumes(snapshot)


def _removal_due(snapshot: Snapshot, container: Container) -> float | None:
    if snapshot.fate is Fate.DELETED:
        return snapshot.now
    since = snapshot.orphans.containers.get(container.id)
    if since is None or not _may_collect(snapshot, container.id):
        return None
    return since + snapshot.gc_grace


def _take_away(snapshot: Snapshot, container: Container) -> Decision:
    deleted = snapshot.fate is Fate.DELETED
    cause = "its record was taken out" if deleted else "it belongs to no record"
    asked = policy.failure_of(snapshot.memory, failure_key(Verb.STOP, container))
    may_ask = asked is None and Verb.STOP not in snapshot.hung
    if deleted and container.phase is Phase.RUNNING and may_ask:
        return step_on(Verb.STOP, container, cause)
    return step_on(Verb.REMOVE, container, cause)


def collect_volumes(snapshot: Snapshot) -> Decision:
    """Volumes that nothing asks for go when they have been kept as long as was promised."""
    in_use = {name for container in snapshot.observed.containers for name in container.volumes}
    waits = []
    for volume in surplus_volumes(snapshot):
        due = None if volume.adopted else _volume_due(snapshot, volume.name)
        if due is not None and due <= snapshot.now and volume.name not in in_use:
            action = Action(Verb.REMOVE_VOLUME, volume.name, "it was kept as long as was asked")
            return gated(snapshot, Decision(action))
        waits.append(Decision(wait_until=None if volume.name in in_use else due))
    return earliest(waits)


def _volume_due(snapshot: Snapshot, name: str) -> float | None:
    since = snapshot.orphans.volumes.get(name)
    retain = snapshot.orphans.retain.get(name)
    if since is None or retain is None or not _may_collect(snapshot, name):
        return None
    return since + retain


def _may_collect(snapshot: Snapshot, orphan: str) -> bool:
    return snapshot.may_collect and orphan not in snapshot.orphans.held
