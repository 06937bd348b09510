"""Failed actions: which of them still matter, and when each is due again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core.action import Action, Blocker, Decision, Source, Verb, wait_for
from reconciler.core.restart import Failure, FailureKey, SandboxMemory, backoff

if TYPE_CHECKING:
    from collections.abc import Collection

    from reconciler.core.observed import Container
    from reconciler.core.snapshot import Snapshot
    from reconciler.core.spec import RestartSpec

# Each try of a replacement that cannot be started costs its sandbox a stop and a start.
_SWAP_BACKOFF: Final = 60.0
_SWAP_MAX_BACKOFF: Final = 3600.0
# An engine that was just restarted may still be removing leftover runtime state.
_UNSTARTABLE_AFTER: Final = 3
_FAILED_STARTS: Final = 6


def after_failure(
    memory: SandboxMemory,
    failed: Failure,
    restart: RestartSpec,
    key: str,
    *,
    swap: bool,
    relevant: Collection[str],
) -> SandboxMemory:
    """Remember an action that failed at ``failed.at``, with its count and its next try.

    ``swap``: it was the start of a replacement. ``relevant`` has the spec hashes, ids and volume
    names that exist; failures of other edits, or on other objects, are forgotten.
    """
    others = [f for f in memory.failures if matters(f, relevant) and f.about != failed.about]
    count = 1 + sum(f.count for f in memory.failures if f.about == failed.about)
    base, cap = (
        (_SWAP_BACKOFF, _SWAP_MAX_BACKOFF) if swap else (restart.backoff, restart.max_backoff)
    )
    due = failed.at + backoff(base, cap, count, key)
    return replace(memory, failures=(*others, replace(failed, count=count, not_before=due)))


def matters(failure: Failure, relevant: Collection[str]) -> bool:
    """Whether a failure is about something that exists; ``relevant`` as in ``after_failure``."""
    return failure.spec_hash in relevant and (not failure.target or failure.target in relevant)


def after_success(memory: SandboxMemory) -> SandboxMemory:
    """Forget all failures, since the sandbox is as desired."""
    return replace(memory, failures=()) if memory.failures else memory


def failure_of(memory: SandboxMemory, about: FailureKey) -> Failure | None:
    """Return the failure with this key, if there is one."""
    return next((f for f in memory.failures if f.about == about), None)


def is_unstartable(memory: SandboxMemory, container: Container) -> bool:
    """Whether the engine said, often enough, that the container can never start again."""
    return any(
        f.unstartable == container.id and f.count >= _UNSTARTABLE_AFTER for f in memory.failures
    )


def keeps_failing(memory: SandboxMemory, container: Container) -> bool:
    """Whether a container that ran before failed to start so often that it is to be recreated."""
    return any(
        f.verb is Verb.START and f.target == container.id and f.count >= _FAILED_STARTS
        for f in memory.failures
    )


def gated(snapshot: Snapshot, decision: Decision) -> Decision:
    """Replace an action that is not due yet by the wait for it."""
    action = decision.action
    if action is None:
        return decision
    blocker = blocker_of(snapshot, failure_key_of(snapshot, action))
    current = snapshot.roles.current
    if action.verb is Verb.UNPAUSE and current and current.id == action.container_id:
        since = foreign_pause(snapshot, current.id)
        # A commit or a backup pauses a container to keep its files unchanged.
        if since is not None and since + snapshot.pause_grace > snapshot.now:
            return Decision(
                wait_until=since + snapshot.pause_grace,
                waiting_for="others paused it; it is resumed after `foreign_pause_grace`",
            )
    return wait_for(blocker) if blocker else decision


def foreign_pause(snapshot: Snapshot, container_id: str) -> float | None:
    """Return since when others have paused the container, or None if the daemon paused it."""
    pause = snapshot.memory.pause
    if pause is None or pause.container_id != container_id:
        return snapshot.now
    return None if pause.ours else pause.since


def blocker_of(snapshot: Snapshot, about: FailureKey) -> Blocker | None:
    """Return what an action has to wait for: its own backoff, or the circuit of its verb."""
    if failure := pending_failure(snapshot, about):
        return Blocker(about.verb, failure.not_before, failure.cause, Source.FAILURE)
    return snapshot.blocker(about.verb)


def pending_failure(snapshot: Snapshot, about: FailureKey) -> Failure | None:
    """Return the failure that has to be waited for before the action is due again."""
    failure = failure_of(snapshot.memory, about)
    return failure if failure is not None and failure.not_before > snapshot.now else None


def failure_key_of(snapshot: Snapshot, action: Action) -> FailureKey:
    """Return the key under which a failure of the action is remembered."""
    container = snapshot.observed.container(action.container_id)
    if container is not None:
        return failure_key(action.verb, container)
    desired = (snapshot.desired.spec_hash or "") if snapshot.desired else ""
    return FailureKey(action.verb, desired, "" if action.verb.makes else action.target)


def failure_key(verb: Verb, container: Container) -> FailureKey:
    """Return the key for an action on an existing container.

    The first start of a container counts as part of making it, whichever container it is.
    """
    making = verb.makes and container.started_at is None
    return FailureKey(verb, container.spec_hash, "" if making else container.id)


def relevant_failures(snapshot: Snapshot) -> tuple[Failure, ...]:
    """Return the failures of the present edit, and those on objects that exist.

    An action that the engine is still working on has not failed.
    """
    relevant = still_there(snapshot)
    failed = (failure for failure in snapshot.memory.failures if not failure.progress)
    return tuple(failure for failure in failed if matters(failure, relevant))


def latest_failure(snapshot: Snapshot) -> Failure | None:
    """Return the latest of the relevant failures."""
    return max(relevant_failures(snapshot), key=lambda failure: failure.at, default=None)


def still_there(snapshot: Snapshot) -> set[str]:
    """Return the spec hashes, container ids and volume names that a failure may be about."""
    containers, volumes = snapshot.observed.containers, snapshot.observed.volumes
    names = {c.spec_hash for c in containers} | {c.id for c in containers}
    edit = snapshot.desired.spec_hash if snapshot.desired else None
    return names | {v.name for v in volumes} | {edit or ""}
