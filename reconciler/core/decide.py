"""The one decision: from all that is known about a key, the next forward step.

One step at a time, so that whatever happened meanwhile, an edit or a crash, is seen before the
next. Nothing here remembers that a replacement is under way: the names of the containers say how
far it got, so it is taken up again from any point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from reconciler.core import policy
from reconciler.core.deletion import collect_volumes, unwanted
from reconciler.core.lifecycle import converge_state
from reconciler.core.limits import limits_drift
from reconciler.core.model import (
    Action,
    Decision,
    ImageState,
    Phase,
    Verb,
)
from reconciler.core.replacement import (
    drift,
    has_volume,
    names_of,
    replace_cause,
    roles_of,
    wanted_volume,
)
from reconciler.core.spec import DesiredState, PullPolicy
from reconciler.core.steps import (
    blocked,
    earliest,
    failure_key,
    gated,
    held_by,
    step_on,
    wind_down,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reconciler.core.model import Container, Desired, Snapshot
    from reconciler.core.replacement import Names, Roles

_WRECKAGE: Final = frozenset({Phase.DEAD, Phase.REMOVING})


def decide(snapshot: Snapshot) -> Decision:
    """The next step for this key, or why there is none."""
    if snapshot.desired is None:
        return unwanted(snapshot)
    stuck = _stuck(snapshot, snapshot.desired)
    decision = _wanted(snapshot, snapshot.desired, stuck) or collect_volumes(snapshot)
    if decision.action is not None or not stuck:
        return decision
    # The sandbox is well, but for what is left to remove.
    first = earliest([decision, *stuck.values()])
    return Decision(None, first.wait_until, decision.waiting_for or first.waiting_for)


def _wanted(snapshot: Snapshot, desired: Desired, stuck: Mapping[str, Decision]) -> Decision | None:
    seen = tuple(c for c in snapshot.observed.containers if c.name not in stuck)
    snapshot = replace(snapshot, observed=replace(snapshot.observed, containers=seen))
    world = _World(snapshot, desired, roles_of(snapshot), names_of(snapshot), frozenset(stuck))
    for rule in _RULES:
        decision = rule(world)
        if decision is not None:
            return gated(snapshot, decision)
    return None


def _stuck(snapshot: Snapshot, desired: Desired) -> dict[str, Decision]:
    """Leftovers that do nothing, and that cannot be removed yet: the wait for each, by name."""
    found = {}
    for container in snapshot.observed.containers:
        wait = blocked(snapshot, failure_key(Verb.REMOVE, container))
        if wait is not None and not container.live and _useless(snapshot, desired, container):
            found[container.name] = wait
    return found


def _useless(snapshot: Snapshot, desired: Desired, container: Container) -> bool:
    """Whether no step needs the container, except for those that need its name."""
    roles = roles_of(snapshot)
    current = roles.current
    if container is current:
        return False
    if container.phase in _WRECKAGE or container is roles.stand_in:
        return True
    if container is roles.successor and drift(snapshot, desired, container):
        return True
    if current is None:
        return False
    if container is roles.predecessor:
        return current.started_at is not None
    return container is not roles.successor or not replace_cause(snapshot, desired, current)


@dataclass(frozen=True, slots=True)
class _World:
    snapshot: Snapshot
    desired: Desired
    roles: Roles
    names: Names
    stuck: frozenset[str]

    def in_sync(self, container: Container) -> bool:
        return not drift(self.snapshot, self.desired, container)

    def failed(self, verb: Verb, container: Container) -> bool:
        """Whether the step failed on such a container, and is not due again."""
        return held_by(self.snapshot, failure_key(verb, container)) is not None


# --- what a record asks for -------------------------------------------------------------------


def _clear_wreckage(world: _World) -> Decision | None:
    if world.roles.stand_in is not None:
        return step_on(Verb.REMOVE, world.roles.stand_in, "it was left over from a preparation")
    for container in world.snapshot.observed.containers:
        if container.phase in _WRECKAGE:
            aside = _way_aside(world, container)
            if aside:
                cause = "it cannot be removed, and its name is needed"
                return step_on(Verb.RENAME, container, cause, new_name=aside)
            begun = container.phase is Phase.REMOVING
            cause = "its removal has begun already" if begun else "the engine says it is dead"
            return step_on(Verb.REMOVE, container, cause)
    return None


def _way_aside(world: _World, wreck: Container) -> str:
    """A name for wreckage that keeps the sandbox's name from its next container; or nothing."""
    if wreck is not world.roles.current or not world.failed(Verb.REMOVE, wreck):
        return ""
    taken = {c.name for c in world.snapshot.observed.containers} | world.stuck
    names = (world.names.predecessor, world.names.successor)
    return next((name for name in names if name not in taken), "")


def _fill_the_name(world: _World) -> Decision | None:
    """Nobody bears the sandbox's name: whoever is nearest to what is desired gets it."""
    roles = world.roles
    if roles.current is not None:
        return None
    heir = _heir(world)
    if heir is not None:
        name = world.names.predecessor if _stands_in_the_way(world, heir) else world.names.current
        return step_on(Verb.RENAME, heir, "it is not under its name", new_name=name)
    if roles.successor is not None:
        return step_on(Verb.REMOVE, roles.successor, "it was made for an older edit")
    return _make(world, world.names.current, "it does not exist")


def _heir(world: _World) -> Container | None:
    roles = world.roles
    if roles.successor is not None and world.in_sync(roles.successor):
        return roles.successor
    if roles.predecessor is not None:
        return roles.predecessor
    return max(roles.strays, key=lambda c: (world.in_sync(c), c.live, c.created_at), default=None)


def _stands_in_the_way(world: _World, heir: Container) -> bool:
    """Its name is taken: by one that may itself wait for the name that this one bears."""
    taken = policy.failure_of(world.snapshot.memory, failure_key(Verb.RENAME, heir))
    aside = world.names.predecessor not in world.stuck
    return aside and heir in world.roles.strays and taken is not None


def _drop_strays(world: _World) -> Decision | None:
    for container in world.roles.strays:
        return step_on(Verb.REMOVE, container, f"{world.names.current} has taken its place")
    return None


def _finish_replacement(world: _World) -> Decision | None:
    """Both old and new are there: keep the new one once it has started, else the old one."""
    current, predecessor = world.roles.current, world.roles.predecessor
    if current is None or predecessor is None:
        return None
    never_started = current.started_at is None and not current.live
    if never_started and not world.in_sync(current):
        return step_on(Verb.REMOVE, current, "it was made for an older edit")
    fails = never_started and world.failed(Verb.START, current)
    if fails and not policy.is_unstartable(world.snapshot.memory, predecessor):
        return step_on(Verb.REMOVE, current, "it cannot be started: the one before it comes back")
    if never_started and world.desired.state is not DesiredState.STOPPED:
        for other in (predecessor, world.roles.successor):
            if other is not None and other.live:
                return wind_down(other, "one runs at a time, and it is not the one")
        return step_on(Verb.START, current, "it replaces the one before it")
    return step_on(Verb.REMOVE, predecessor, "it was replaced")


def _replace(world: _World) -> Decision | None:
    current, successor = world.roles.current, world.roles.successor
    assert current is not None
    cause = replace_cause(world.snapshot, world.desired, current)
    if successor is None:
        keep = not cause or _making_must_wait(world)
        return None if keep else _make(world, world.names.successor, cause)
    if not cause:
        return step_on(Verb.REMOVE, successor, "no replacement is needed")
    if not world.in_sync(successor):
        return step_on(Verb.REMOVE, successor, "it was made for an older edit")
    if world.names.predecessor in world.stuck:
        return None
    if current.live:
        return wind_down(current, cause)
    return step_on(Verb.RENAME, current, cause, new_name=world.names.predecessor)


def _making_must_wait(world: _World) -> bool:
    """While a replacement cannot be made, the container that is there is kept as desired."""
    snapshot, names = world.snapshot, world.names
    hindered = bool(snapshot.hindrance) or snapshot.image is ImageState.PULLING
    taken = world.stuck & {names.successor, names.predecessor}
    return hindered or bool(taken) or _blocked_until(world) > snapshot.now


def _blocked_until(world: _World) -> float:
    snapshot, spec_hash = world.snapshot, world.desired.spec_hash
    failed = [
        f.not_before for f in snapshot.memory.failures if f.verb.makes and f.spec_hash == spec_hash
    ]
    return max([*failed, *(due for verb, due in snapshot.hung.items() if verb.makes)], default=0.0)


def _make(world: _World, name: str, cause: str) -> Decision:
    snapshot, desired = world.snapshot, world.desired
    if snapshot.hindrance:
        return Decision(waiting_for=snapshot.hindrance)
    if snapshot.image is ImageState.PULLING:
        return Decision(waiting_for=f"pulling {desired.spec.image}")
    if _needs_pull(snapshot, desired):
        return Decision(Action(Verb.PULL, desired.spec.image, cause))
    volume = wanted_volume(snapshot)
    if volume and not has_volume(snapshot, volume):
        return Decision(Action(Verb.CREATE_VOLUME, volume, "its workspace does not exist"))
    return Decision(Action(Verb.CREATE, name, cause))


def _needs_pull(snapshot: Snapshot, desired: Desired) -> bool:
    if desired.spec.pull is PullPolicy.ALWAYS:
        return snapshot.image is not ImageState.FRESH
    return desired.spec.pull is PullPolicy.MISSING and snapshot.image is ImageState.ABSENT


def _correct_limits(world: _World) -> Decision | None:
    """Others changed its limits: they are set back in place, and nothing else waits for that."""
    decision = _correction(world)
    return decision if decision and gated(world.snapshot, decision) is decision else None


def _still_to_correct(world: _World) -> Decision | None:
    return _correction(world)


def _correction(world: _World) -> Decision | None:
    current = world.roles.current
    assert current is not None
    drifted = limits_drift(world.snapshot.memory, current)
    return step_on(Verb.UPDATE, current, f"others changed it: {drifted}") if drifted else None


def _converge_state(world: _World) -> Decision | None:
    assert world.roles.current is not None
    return converge_state(world.snapshot, world.desired, world.roles.current)


def _still_to_make(world: _World) -> Decision | None:
    """The container that is there is as it should be, and waits for its replacement."""
    current = world.roles.current
    assert current is not None
    if not replace_cause(world.snapshot, world.desired, current):
        return None
    if world.snapshot.hindrance:
        return Decision(waiting_for=world.snapshot.hindrance)
    if world.snapshot.image is ImageState.PULLING:
        return Decision(waiting_for=f"pulling {world.desired.spec.image}")
    failure = world.snapshot.memory.failure
    cause = failure.cause if failure else "a replacement"
    due = _blocked_until(world)
    return Decision(wait_until=due if due > world.snapshot.now else None, waiting_for=cause)


_RULES: Final[tuple[Callable[[_World], Decision | None], ...]] = (
    _clear_wreckage,
    _fill_the_name,
    _drop_strays,
    _finish_replacement,
    _replace,
    _correct_limits,
    _converge_state,
    _still_to_make,
    _still_to_correct,
)
