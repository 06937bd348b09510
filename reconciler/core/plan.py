"""Predict the actions for a key, by applying each decision to a model of the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from reconciler.core.action import Action, Verb
from reconciler.core.container_config import published
from reconciler.core.decide import decide
from reconciler.core.health import Health, Verdict
from reconciler.core.observed import Container, Observed, Phase, Volume
from reconciler.core.restart import after_own_stop, after_start
from reconciler.core.snapshot import ImageState

if TYPE_CHECKING:
    from reconciler.core.snapshot import Snapshot

# The longest known plan, a replacement of a paused sandbox with a stray, has a dozen steps.
MAX_STEPS: Final = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """The ordered actions for one key, as far as they can be predicted."""

    key: str
    actions: tuple[Action, ...] = ()
    waiting_for: str = ""


def plan(snapshot: Snapshot) -> Plan:
    """Return the actions that lead to the desired state, if each one succeeds."""
    actions: list[Action] = []
    while len(actions) < MAX_STEPS:
        decision = decide(snapshot)
        if decision.action is None:
            return Plan(snapshot.key, tuple(actions), decision.waiting_for)
        actions.append(decision.action)
        snapshot = after(snapshot, decision.action)
    return Plan(snapshot.key, tuple(actions), "more steps than a plan can predict")


def after(snapshot: Snapshot, action: Action) -> Snapshot:
    """Return the snapshot after a successful action."""
    containers, volumes = snapshot.observed.containers, snapshot.observed.volumes
    image = snapshot.image
    match action.verb:
        case Verb.PULL:
            image = ImageState.FRESH
        case Verb.CREATE:
            image = ImageState.UNKNOWN
            containers = (*containers, _created(snapshot, action))
        case Verb.CREATE_VOLUME:
            volumes = (*volumes, Volume(action.target, snapshot.key))
        case Verb.REMOVE:
            containers = tuple(c for c in containers if c.id != action.container_id)
        case Verb.REMOVE_VOLUME:
            volumes = tuple(v for v in volumes if v.name != action.target)
        case _:
            return _changed(snapshot, action)
    return replace(snapshot, image=image, observed=Observed(containers, volumes))


def _created(snapshot: Snapshot, action: Action) -> Container:
    desired, volume = snapshot.desired, snapshot.wanted_volume
    assert desired is not None
    return Container(
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


def _changed(snapshot: Snapshot, action: Action) -> Snapshot:
    """Return the snapshot after an action that changes one container."""
    container, now = snapshot.observed.container(action.container_id), snapshot.now
    memory, health = snapshot.memory, snapshot.health
    assert container is not None
    match action.verb:
        case Verb.START:
            container = replace(container, phase=Phase.RUNNING, started_at=now)
            memory = after_start(memory)
            health = Health(container.id, now, now, Verdict.GOOD, now)
        case Verb.STOP:
            container = replace(container, phase=Phase.EXITED, finished_at=now)
            memory = after_own_stop(memory, container)
        case Verb.PAUSE:
            container = replace(container, phase=Phase.PAUSED)
        case Verb.UNPAUSE:
            container = replace(container, phase=Phase.RUNNING)
        case Verb.RENAME:
            container = replace(container, name=action.new_name)
        case _:
            assert memory.baseline is not None
            container = replace(container, limits=memory.baseline.limits)
    containers = tuple(
        container if c.id == container.id else c for c in snapshot.observed.containers
    )
    observed = Observed(containers, snapshot.observed.volumes)
    return replace(snapshot, observed=observed, memory=memory, health=health)
