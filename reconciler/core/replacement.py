"""Make, name and replace a record's container, one step at a time.

A replacement is created beside the current container, which is then stopped and renamed. The new
container gets the sandbox's name, is started, and the old one is removed. The names show how far
this got, so that it resumes from any point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.core.action import (
    Action,
    Blocker,
    Decision,
    Source,
    Verb,
    step_on,
    wait_for,
    wind_down,
)
from reconciler.core.drift import drift, replace_cause
from reconciler.core.failures import failure_key, failure_of, is_unstartable, pending_failure
from reconciler.core.snapshot import ImageState
from reconciler.core.spec import DesiredState, PullPolicy

if TYPE_CHECKING:
    from reconciler.core.observed import Container
    from reconciler.core.snapshot import Desired, Snapshot


def fill_name(snapshot: Snapshot, desired: Desired) -> Decision | None:
    """Give the sandbox's name to the best candidate, or create a container, if none has it."""
    roles, names = snapshot.roles, snapshot.names
    if roles.current is not None:
        return None
    if roles.successor is not None and not drift(snapshot, desired, roles.successor):
        candidate: Container | None = roles.successor
    else:
        candidate = roles.predecessor or max(
            roles.strays,
            key=lambda c: (not drift(snapshot, desired, c), c.live, c.created_at),
            default=None,
        )
    if candidate is None:
        if roles.successor is not None:
            return step_on(Verb.REMOVE, roles.successor, "it was made for an older spec")
        return create(snapshot, desired, names.current, "the container does not exist")
    # The container that has the name may itself wait for the name of this one: make room for it.
    refused = failure_of(snapshot.memory, failure_key(Verb.RENAME, candidate)) is not None
    is_free = names.predecessor not in snapshot.taken_names
    swap = refused and is_free and candidate in roles.strays
    name = names.predecessor if swap else names.current
    return step_on(Verb.RENAME, candidate, "the container has the wrong name", new_name=name)


def finish_replacement(snapshot: Snapshot, desired: Desired) -> Decision | None:
    """Keep the new container once it has started, and restore the old one if it cannot start."""
    current, predecessor = snapshot.roles.current, snapshot.roles.predecessor
    if current is None or predecessor is None:
        return None
    never_started = current.started_at is None and not current.live
    if never_started and drift(snapshot, desired, current):
        return step_on(Verb.REMOVE, current, "it was made for an older spec")
    fails = never_started and pending_failure(snapshot, failure_key(Verb.START, current))
    if fails and not is_unstartable(snapshot.memory, predecessor):
        return step_on(
            Verb.REMOVE, current, "it cannot be started; the previous container is restored"
        )
    if never_started and desired.state is not DesiredState.STOPPED:
        for other in (predecessor, snapshot.roles.successor):
            if other is not None and other.live:
                return wind_down(other, "stop the old container before starting its replacement")
        return step_on(Verb.START, current, "it replaces the previous container")
    return step_on(Verb.REMOVE, predecessor, "it was replaced")


def begin_replacement(snapshot: Snapshot, desired: Desired, current: Container) -> Decision | None:
    """Create the successor, then stop the current container and rename it."""
    successor, names, taken = snapshot.roles.successor, snapshot.names, snapshot.taken_names
    cause = replace_cause(snapshot, desired, current)
    if successor is None:
        # Until the replacement can be made, the current container is kept in its desired state.
        must_wait = creation_blocker(snapshot, desired) or {
            names.successor,
            names.predecessor,
        }.intersection(taken)
        return None if not cause or must_wait else create(snapshot, desired, names.successor, cause)
    if not cause:
        return step_on(Verb.REMOVE, successor, "the replacement is no longer needed")
    if drift(snapshot, desired, successor):
        return step_on(Verb.REMOVE, successor, "it was made for an older spec")
    if names.predecessor in taken:
        return None
    if current.live:
        return wind_down(current, cause)
    return step_on(Verb.RENAME, current, cause, new_name=names.predecessor)


def await_replacement(snapshot: Snapshot, desired: Desired, current: Container) -> Decision | None:
    """Return the wait for a replacement that cannot be made yet."""
    blocker = creation_blocker(snapshot, desired)
    return wait_for(blocker) if blocker and replace_cause(snapshot, desired, current) else None


def creation_blocker(snapshot: Snapshot, desired: Desired) -> Blocker | None:
    """Return what prevents making a container, from the pull up to its first start."""
    if blocker := _preparation_blocker(snapshot, desired):
        return blocker
    failed = [
        Blocker(failure.verb, failure.not_before, failure.cause, Source.FAILURE)
        for failure in snapshot.memory.failures
        if failure.verb.makes
        and failure.spec_hash == desired.spec_hash
        and failure.not_before > snapshot.now
    ]
    open_circuits = filter(None, (snapshot.blocker(verb) for verb in Verb if verb.makes))
    return max((*failed, *open_circuits), key=lambda b: b.until or 0.0, default=None)


def create(snapshot: Snapshot, desired: Desired, name: str, cause: str) -> Decision:
    """Return the next step to a new container: pull the image, create the volume, create it."""
    if blocker := _preparation_blocker(snapshot, desired):
        return wait_for(blocker)
    always = desired.spec.pull is PullPolicy.ALWAYS and snapshot.image is not ImageState.FRESH
    missing = desired.spec.pull is PullPolicy.MISSING and snapshot.image is ImageState.ABSENT
    if always or missing:
        return Decision(Action(Verb.PULL, desired.spec.image, cause))
    volume = snapshot.wanted_volume
    if volume and not snapshot.has_volume(volume):
        return Decision(Action(Verb.CREATE_VOLUME, volume, "the workspace volume does not exist"))
    return Decision(Action(Verb.CREATE, name, cause))


def _preparation_blocker(snapshot: Snapshot, desired: Desired) -> Blocker | None:
    """Return what prevents even the steps before a create; an open circuit does not."""
    for blocker in snapshot.blockers:
        if blocker.verb is Verb.CREATE and blocker.source is not Source.CIRCUIT:
            return blocker
    if snapshot.image is not ImageState.PULLING:
        return None
    return Blocker(Verb.CREATE, None, f"pulling {desired.spec.image}", Source.IMAGE)
