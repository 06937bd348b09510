"""How a decision is put: a step on a container, a wait, and the gate before what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.core import policy
from reconciler.core.model import Action, Decision, FailureKey, Phase, Verb
from reconciler.core.replacement import roles_of

if TYPE_CHECKING:
    from reconciler.core.model import Container, Failure, Snapshot

NOTHING: Final = Decision()


def wind_down(container: Container, cause: str) -> Decision:
    """Towards a container that has no processes."""
    # A paused container cannot be stopped gracefully on every engine.
    verb = Verb.UNPAUSE if container.phase is Phase.PAUSED else Verb.STOP
    return step_on(verb, container, cause)


def step_on(
    verb: Verb,
    container: Container,
    cause: str,
    *,
    new_name: str = "",
    restart: bool = False,
) -> Decision:
    """A step on a container that exists."""
    return Decision(
        Action(verb, container.name, cause, container.id, new_name=new_name, restart=restart),
    )


def earliest(waits: list[Decision]) -> Decision:
    """The wait that ends first; nothing where none has an end."""
    timed = [(wait.wait_until, wait.waiting_for) for wait in waits if wait.wait_until is not None]
    return Decision(None, *min(timed)) if timed else NOTHING


def gated(snapshot: Snapshot, decision: Decision) -> Decision:
    """A step that failed, or that hangs for everybody, is not asked for before it is due."""
    action = decision.action
    if action is None:
        return decision
    return (
        _left_paused(snapshot, action)
        or blocked(snapshot, failure_key_of(snapshot, action))
        or decision
    )


def foreign_pause(snapshot: Snapshot, container_id: str) -> float | None:
    """Since when others have paused the container; None where the pause is ours."""
    pause = snapshot.memory.pause
    if pause is None or pause.container_id != container_id:
        return snapshot.now
    return None if pause.ours else pause.since


def _left_paused(snapshot: Snapshot, action: Action) -> Decision | None:
    """The wait for others who paused it: a commit or a backup needs its files to stay as is."""
    current = roles_of(snapshot).current
    if action.verb is not Verb.UNPAUSE or current is None or current.id != action.container_id:
        return None
    since = foreign_pause(snapshot, current.id)
    if since is None or since + snapshot.pause_grace <= snapshot.now:
        return None
    return Decision(
        wait_until=since + snapshot.pause_grace,
        waiting_for="others paused it: it is resumed when `foreign_pause_grace` is over",
    )


def blocked(snapshot: Snapshot, about: FailureKey) -> Decision | None:
    """The wait for a step that is not due: it failed here, or the engine hangs at its kind."""
    failure = held_by(snapshot, about)
    if failure is not None:
        return Decision(wait_until=failure.not_before, waiting_for=failure.cause)
    due = snapshot.hung.get(about.verb, snapshot.now)
    if due <= snapshot.now:
        return None
    return Decision(
        wait_until=due, waiting_for=f"the engine hangs at every {about.verb}: restart it"
    )


def held_by(snapshot: Snapshot, about: FailureKey) -> Failure | None:
    """The failure after which the step is not due yet."""
    failure = policy.failure_of(snapshot.memory, about)
    waits = failure is not None and failure.not_before > snapshot.now
    return failure if waits else None


def failure_key_of(snapshot: Snapshot, action: Action) -> FailureKey:
    """What a failure of the step is remembered under."""
    container = snapshot.observed.container(action.container_id)
    if container is not None:
        return failure_key(action.verb, container)
    desired = (snapshot.desired.spec_hash or "") if snapshot.desired else ""
    return FailureKey(action.verb, desired, "" if action.verb.makes else action.target)


def failure_key(verb: Verb, container: Container) -> FailureKey:
    """As ``failure_key_of``, for a step on an existing container.

    The first start of a container counts as a step of making it.
    """
    making = verb.makes and container.started_at is None
    return FailureKey(verb, container.spec_hash, "" if making else container.id)


def relevant_failures(snapshot: Snapshot) -> tuple[Failure, ...]:
    """Return the failed steps that are about the present edit, or about what still exists.

    A step that the engine is still at is none.
    """
    relevant = still_there(snapshot)
    failed = (failure for failure in snapshot.memory.failures if not failure.progress)
    return tuple(failure for failure in failed if policy.matters(failure, relevant))


def latest_failure(snapshot: Snapshot) -> Failure | None:
    """Return the latest of the relevant failures."""
    return max(relevant_failures(snapshot), key=lambda failure: failure.at, default=None)


def still_there(snapshot: Snapshot) -> set[str]:
    """The spec hashes, container ids and volume names that a failure may still be about."""
    containers, volumes = snapshot.observed.containers, snapshot.observed.volumes
    names = {c.spec_hash for c in containers} | {c.id for c in containers}
    edit = snapshot.desired.spec_hash if snapshot.desired else None
    return names | {v.name for v in volumes} | {edit or ""}
