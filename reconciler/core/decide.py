"""Decide the next action for one key from its snapshot.

One action at a time, so that an edit or a crash in between is seen before the next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core.action import Blocker, Decision, Verb, earliest, step_on, wait_for, wind_down
from reconciler.core.deletion import collect_volumes, delete_unwanted
from reconciler.core.drift import drift, limits_drift, replace_cause
from reconciler.core.failures import blocker_of, failure_key, gated, pending_failure
from reconciler.core.health import Verdict, verdict_of
from reconciler.core.observed import Phase
from reconciler.core.replacement import (
    await_replacement,
    begin_replacement,
    fill_name,
    finish_replacement,
)
from reconciler.core.restart import is_accounted, is_own_stop, unhealthy_restart_due
from reconciler.core.spec import DesiredState

if TYPE_CHECKING:
    from reconciler.core.observed import Container
    from reconciler.core.snapshot import Desired, Snapshot

_DEAD: Final = frozenset({Phase.DEAD, Phase.REMOVING})
# Seconds between checks of a container that the engine is restarting.
_POLL: Final = 1.0


def decide(snapshot: Snapshot) -> Decision:
    """Return the next action for this key, or why there is none."""
    desired = snapshot.desired
    if desired is None:
        return delete_unwanted(snapshot)
    stuck: dict[str, Blocker] = {}
    for container in snapshot.observed.containers:
        blocker = blocker_of(snapshot, failure_key(Verb.REMOVE, container))
        if blocker and not container.live and _is_leftover(snapshot, desired, container):
            stuck[container.name] = blocker
    # A leftover that cannot be removed yet must not hold back the rest.
    containers = tuple(c for c in snapshot.observed.containers if c.name not in stuck)
    rest = replace(
        snapshot,
        observed=replace(snapshot.observed, containers=containers),
        taken_names=frozenset(stuck),
    )
    decision = _converge(rest, desired) or collect_volumes(snapshot)
    if decision.action is not None or not stuck:
        return decision
    first = earliest([decision, *map(wait_for, stuck.values())])
    return Decision(None, first.wait_until, decision.waiting_for or first.waiting_for)


def _is_leftover(snapshot: Snapshot, desired: Desired, container: Container) -> bool:
    """Whether no step needs the container, although a step may need its name."""
    roles = snapshot.roles
    current = roles.current
    if container is current:
        return False
    if container.phase in _DEAD or container is roles.stand_in:
        return True
    if container is roles.successor and drift(snapshot, desired, container):
        return True
    if current is None:
        return False
    if container is roles.predecessor:
        return current.started_at is not None
    return container is not roles.successor or not replace_cause(snapshot, desired, current)


def _converge(snapshot: Snapshot, desired: Desired) -> Decision | None:
    """Return the first decision that a rule makes; the order of the rules matters."""
    decision = _remove_dead(snapshot) or fill_name(snapshot, desired)
    if decision is None:
        roles = snapshot.roles
        current = roles.current
        assert current is not None
        cause = f"{snapshot.names.current} already exists"
        stray = step_on(Verb.REMOVE, roles.strays[0], cause) if roles.strays else None
        limits = limits_drift(snapshot.memory, current)
        update = step_on(Verb.UPDATE, current, f"others changed it: {limits}") if limits else None
        # Limits that the engine refuses to change must not hold back the rest.
        update_now = update if update and gated(snapshot, update) is update else None
        decision = (
            stray
            or finish_replacement(snapshot, desired)
            or begin_replacement(snapshot, desired, current)
            or update_now
            or _converge_state(snapshot, desired, current)
            or await_replacement(snapshot, desired, current)
            or update
        )
    return gated(snapshot, decision) if decision else None


def _remove_dead(snapshot: Snapshot) -> Decision | None:
    """Remove a leftover stand-in, or a container that the engine can only remove."""
    roles, containers = snapshot.roles, snapshot.observed.containers
    if roles.stand_in is not None:
        return step_on(Verb.REMOVE, roles.stand_in, "left over from preparing the workspace")
    dead = next((container for container in containers if container.phase in _DEAD), None)
    if dead is None:
        return None
    if dead is roles.current and pending_failure(snapshot, failure_key(Verb.REMOVE, dead)):
        taken = snapshot.taken_names.union(container.name for container in containers)
        names = (snapshot.names.predecessor, snapshot.names.successor)
        if free := next((name for name in names if name not in taken), ""):
            cause = "its removal failed and its name is needed"
            return step_on(Verb.RENAME, dead, cause, new_name=free)
    begun = dead.phase is Phase.REMOVING
    cause = "its removal has already begun" if begun else "the engine reports it as dead"
    return step_on(Verb.REMOVE, dead, cause)


def _converge_state(snapshot: Snapshot, desired: Desired, current: Container) -> Decision | None:
    """Drive an up-to-date container to its desired state: start, pause, unpause, restart, stop."""
    if desired.state is DesiredState.STOPPED:
        return wind_down(current, "stopped is desired") if current.live else None
    match current.phase:
        case Phase.CREATED:
            return step_on(Verb.START, current, f"{desired.state} is desired")
        case Phase.EXITED:
            return _restart_exited(snapshot, desired, current)
        case Phase.RESTARTING:
            return Decision(
                wait_until=snapshot.now + _POLL, waiting_for="the engine is restarting it"
            )
        case Phase.RUNNING:
            return _keep_running(snapshot, desired, current)
        case _:
            paused = desired.state is DesiredState.PAUSED
            return None if paused else step_on(Verb.UNPAUSE, current, "running is desired")


def _restart_exited(snapshot: Snapshot, desired: Desired, current: Container) -> Decision:
    memory = snapshot.memory
    if is_own_stop(memory, current):
        return step_on(Verb.START, current, f"{desired.state} is desired")
    # A read-only command may see an exit that the daemon has not accounted for yet.
    accounted = is_accounted(memory, current)
    death, due = (memory.death, memory.not_before) if accounted else (None, None)
    cause = f"it ended: {death.reason if death else f'exit code {current.exit_code}'}"
    if due is not None and due > snapshot.now:
        return Decision(wait_until=due, waiting_for=f"restart backoff: {cause}")
    return step_on(Verb.START, current, cause, restart=death is None or not death.unseen)


def _keep_running(snapshot: Snapshot, desired: Desired, current: Container) -> Decision | None:
    verdict = verdict_of(snapshot.health, current)
    if verdict is Verdict.UNHEALTHY:
        restart = desired.spec.restart
        due = unhealthy_restart_due(snapshot.health, snapshot.memory, restart, snapshot.key)
        cause = f"unhealthy: {snapshot.health.reason}"
        if due > snapshot.now:
            return Decision(wait_until=due, waiting_for=f"restart backoff: {cause}")
        return step_on(Verb.STOP, current, cause, restart=True)
    if desired.state is DesiredState.RUNNING:
        return None
    if desired.spec.health is None or verdict is Verdict.GOOD:
        return step_on(Verb.PAUSE, current, "paused is desired")
    return Decision(waiting_for="a good probe before it is paused")
