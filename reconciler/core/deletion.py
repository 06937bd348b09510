"""The decision about what no record asks for: a record's remains, garbage, surplus volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.core import policy
from reconciler.core.model import Action, Decision, Fate, Phase, Verb
from reconciler.core.replacement import surplus_volumes
from reconciler.core.steps import concern_of, earliest, gated, step_on

if TYPE_CHECKING:
    from reconciler.core.model import Container, View


def unwanted(view: View) -> Decision:
    """The next step for a key that has no record."""
    waits = []
    for container in view.observed.containers:
        due = _removal_due(view, container)
        decision = Decision(wait_until=due, waiting_for="the grace of what belongs to no record")
        if due is not None and due <= view.now:
            decision = gated(view, _take_away(view, container))
        if decision.action is not None:
            return decision
        waits.append(decision)
    if waits:
        return earliest(waits)
    return collect_volumes(view)


def _removal_due(view: View, container: Container) -> float | None:
    if view.fate is Fate.DELETED:
        return view.now
    since = view.orphans.containers.get(container.id)
    if since is None or not _may_collect(view, container.id):
        return None
    return since + view.gc_grace


def _take_away(view: View, container: Container) -> Decision:
    deleted = view.fate is Fate.DELETED
    cause = "its record was taken out" if deleted else "it belongs to no record"
    asked = policy.failure_of(view.memory, concern_of(Verb.STOP, container))
    may_ask = asked is None and Verb.STOP not in view.hung
    if deleted and container.phase is Phase.RUNNING and may_ask:
        return step_on(Verb.STOP, container, cause)
    return step_on(Verb.REMOVE, container, cause)


def collect_volumes(view: View) -> Decision:
    """Volumes that nothing asks for go when they have been kept as long as was promised."""
    in_use = {name for container in view.observed.containers for name in container.volumes}
    waits = []
    for volume in surplus_volumes(view):
        due = None if volume.adopted else _volume_due(view, volume.name)
        if due is not None and due <= view.now and volume.name not in in_use:
            action = Action(Verb.REMOVE_VOLUME, volume.name, "it was kept as long as was asked")
            return gated(view, Decision(action))
        waits.append(Decision(wait_until=None if volume.name in in_use else due))
    return earliest(waits)


def _volume_due(view: View, name: str) -> float | None:
    since = view.orphans.volumes.get(name)
    retain = view.orphans.retain.get(name)
    if since is None or retain is None or not _may_collect(view, name):
        return None
    return since + retain


def _may_collect(view: View, orphan: str) -> bool:
    return view.may_collect and orphan not in view.orphans.held
