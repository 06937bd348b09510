"""``plan()``: the decisions one after the other, on a model of the world that follows them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core.container_config import published
from reconciler.core.decide import decide
from reconciler.core.model import (
    Container,
    Health,
    ImageState,
    Observed,
    Phase,
    Plan,
    Verb,
    Verdict,
    Volume,
)
from reconciler.core.policy import after_own_stop, after_start
from reconciler.core.replacement import wanted_volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.model import Action, Snapshot

# The longest way known is a replacement of a paused sandbox with a stray: a dozen steps.
MAX_STEPS: Final = 32


def plan(snapshot: Snapshot) -> Plan:
    """The actions that take the key to what is desired, if each one does what it should."""
    actions: list[Action] = []
    while len(actions) < MAX_STEPS:
        decision = decide(snapshot)
        if decision.action is None:
            return Plan(snapshot.key, tuple(actions), decision.waiting_for)
        actions.append(decision.action)
        snapshot = after(snapshot, decision.action)
    return Plan(snapshot.key, tuple(actions), "more than can be foreseen")


def after(snapshot: Snapshot, action: Action) -> Snapshot:
    """The world after an action that did what it should."""
    return _EFFECTS[action.verb](snapshot, action)


def _pull(snapshot: Snapshot, _action: Action) -> Snapshot:
    return replace(snapshot, image=ImageState.FRESH)


def _create_volume(snapshot: Snapshot, action: Action) -> Snapshot:
    made = Volume(action.target, snapshot.key)
    volumes = (*snapshot.observed.volumes, made)
    return replace(snapshot, observed=replace(snapshot.observed, volumes=volumes))


def _create(snapshot: Snapshot, action: Action) -> Snapshot:
    desired, volume = snapshot.desired, wanted_volume(snapshot)
    assert desired is not None
    made = Container(
        id=f"new:{action.target}",
        name=action.target,
        sandbox=snapshot.key,
        spec=desired.spec_name,
        spec_hash=desired.spec_hash or "",
        phase=Phase.CREATED,
        created_at=snapshot.now,
        ports=published(desired.spec, desired.identity) if desired.identity else {},
        volumes=frozenset({volume} if volume else ()),
        image=desired.spec.image,
    )
    containers = (*snapshot.observed.containers, made)
    return replace(
        snapshot,
        image=ImageState.UNKNOWN,
        observed=replace(snapshot.observed, containers=containers),
    )


def _start(snapshot: Snapshot, action: Action) -> Snapshot:
    started = _changed(snapshot, action, phase=Phase.RUNNING, started_at=snapshot.now)
    well = Health(action.container_id, snapshot.now, snapshot.now, Verdict.GOOD, snapshot.now)
    return replace(started, health=well, memory=after_start(snapshot.memory))


def _stop(snapshot: Snapshot, action: Action) -> Snapshot:
    stopped = _changed(snapshot, action, phase=Phase.EXITED, finished_at=snapshot.now)
    container = stopped.observed.container(action.container_id)
    assert container is not None
    return replace(stopped, memory=after_own_stop(snapshot.memory, container))


def _pause(snapshot: Snapshot, action: Action) -> Snapshot:
    return _changed(snapshot, action, phase=Phase.PAUSED)


def _unpause(snapshot: Snapshot, action: Action) -> Snapshot:
    return _changed(snapshot, action, phase=Phase.RUNNING)


def _update(snapshot: Snapshot, action: Action) -> Snapshot:
    baseline = snapshot.memory.baseline
    assert baseline is not None
    return _changed(snapshot, action, limits=baseline.limits)


def _rename(snapshot: Snapshot, action: Action) -> Snapshot:
    return _changed(snapshot, action, name=action.new_name)


def _remove(snapshot: Snapshot, action: Action) -> Snapshot:
    kept = tuple(c for c in snapshot.observed.containers if c.id != action.container_id)
    return replace(snapshot, observed=replace(snapshot.observed, containers=kept))


def _remove_volume(snapshot: Snapshot, action: Action) -> Snapshot:
    kept = tuple(v for v in snapshot.observed.volumes if v.name != action.target)
    return replace(snapshot, observed=replace(snapshot.observed, volumes=kept))


def _changed(snapshot: Snapshot, action: Action, **changes: object) -> Snapshot:
    containers = tuple(
        replace(c, **changes) if c.id == action.container_id else c  # type: ignore[arg-type]
        for c in snapshot.observed.containers
    )
    return replace(snapshot, observed=Observed(containers, snapshot.observed.volumes))


_EFFECTS: Final[dict[Verb, Callable[[Snapshot, Action], Snapshot]]] = {
    Verb.PULL: _pull,
    Verb.CREATE_VOLUME: _create_volume,
    Verb.CREATE: _create,
    Verb.START: _start,
    Verb.STOP: _stop,
    Verb.PAUSE: _pause,
    Verb.UNPAUSE: _unpause,
    Verb.UPDATE: _update,
    Verb.RENAME: _rename,
    Verb.REMOVE: _remove,
    Verb.REMOVE_VOLUME: _remove_volume,
}
