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

    from reconciler.core.model import Action, View

# The longest way known is a replacement of a paused sandbox with a stray: a dozen steps.
MAX_STEPS: Final = 32


def plan(view: View) -> Plan:
    """The actions that take the key to what is desired, if each one does what it should."""
    actions: list[Action] = []
    while len(actions) < MAX_STEPS:
        decision = decide(view)
        if decision.action is None:
            return Plan(view.key, tuple(actions), decision.waiting_for)
        actions.append(decision.action)
        view = after(view, decision.action)
    return Plan(view.key, tuple(actions), "more than can be foreseen")


def after(view: View, action: Action) -> View:
    """The world after an action that did what it should."""
    return _EFFECTS[action.verb](view, action)


def _pull(view: View, _action: Action) -> View:
    return replace(view, image=ImageState.FRESH)


def _create_volume(view: View, action: Action) -> View:
    made = Volume(action.target, view.key)
    volumes = (*view.observed.volumes, made)
    return replace(view, observed=replace(view.observed, volumes=volumes))


def _create(view: View, action: Action) -> View:
    desired, volume = view.desired, wanted_volume(view)
    assert desired is not None
    made = Container(
        id=f"new:{action.target}",
        name=action.target,
        sandbox=view.key,
        spec=desired.spec_name,
        spec_hash=desired.spec_hash or "",
        phase=Phase.CREATED,
        created_at=view.now,
        ports=published(desired.spec, desired.identity) if desired.identity else {},
        volumes=frozenset({volume} if volume else ()),
        image=desired.spec.image,
    )
    containers = (*view.observed.containers, made)
    return replace(
        view,
        image=ImageState.UNKNOWN,
        observed=replace(view.observed, containers=containers),
    )


def _start(view: View, action: Action) -> View:
    started = _changed(view, action, phase=Phase.RUNNING, started_at=view.now)
    well = Health(action.container_id, view.now, view.now, Verdict.GOOD, view.now)
    return replace(started, health=well, memory=after_start(view.memory))


def _stop(view: View, action: Action) -> View:
    stopped = _changed(view, action, phase=Phase.EXITED, finished_at=view.now)
    container = stopped.observed.container(action.container_id)
    assert container is not None
    return replace(stopped, memory=after_own_stop(view.memory, container))


def _pause(view: View, action: Action) -> View:
    return _changed(view, action, phase=Phase.PAUSED)


def _unpause(view: View, action: Action) -> View:
    return _changed(view, action, phase=Phase.RUNNING)


def _update(view: View, action: Action) -> View:
    baseline = view.memory.baseline
    assert baseline is not None
    return _changed(view, action, limits=baseline.limits)


def _rename(view: View, action: Action) -> View:
    return _changed(view, action, name=action.new_name)


def _remove(view: View, action: Action) -> View:
    kept = tuple(c for c in view.observed.containers if c.id != action.container_id)
    return replace(view, observed=replace(view.observed, containers=kept))


def _remove_volume(view: View, action: Action) -> View:
    kept = tuple(v for v in view.observed.volumes if v.name != action.target)
    return replace(view, observed=replace(view.observed, volumes=kept))


def _changed(view: View, action: Action, **changes: object) -> View:
    containers = tuple(
        replace(c, **changes) if c.id == action.container_id else c  # type: ignore[arg-type]
        for c in view.observed.containers
    )
    return replace(view, observed=Observed(containers, view.observed.volumes))


_EFFECTS: Final[dict[Verb, Callable[[View, Action], View]]] = {
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
