"""The rules of time: backoff, restart memory, probe folding, the mass-delete brake."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core.model import (
    UNKNOWN_EXIT,
    End,
    Failure,
    Health,
    Memory,
    Pause,
    Run,
    Verb,
    Verdict,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from reconciler.core.model import Action, Container, Death, FailureKey
    from reconciler.core.spec import HealthSpec, RestartSpec

_JITTER: Final = 0.1
# A replacement that could not be started costs its sandbox a stop and a start each time it is tried
# again, so it is tried again seldom.
_SWAP_BACKOFF: Final = 60.0
_SWAP_MAX_BACKOFF: Final = 3600.0
_MAX_EXPONENT: Final = 32
# An engine that comes back may still be clearing away what is in the way of a start.
_WRECKED_STARTS: Final = 3
_FAILED_STARTS: Final = 6
_LOOP: Final = 5
# How containers end whose engine ends: unknown, or stopped by it (SIGTERM, then SIGKILL).
_ENGINE_ENDS: Final = frozenset({UNKNOWN_EXIT, 0, 128 + 15, 128 + 9})


def backoff(base: float, cap: float, streak: int, key: str) -> float:
    """Seconds to wait before try ``streak`` + 1: 0 at first, then ``base`` doubling to ``cap``.

    Up to 10 % is taken off, by the key and the count, so that what failed together is not tried
    again together.
    """
    if streak == 0:
        return 0.0
    seconds = min(base * 2.0 ** min(streak - 1, _MAX_EXPONENT), cap)
    return seconds * (1.0 - _JITTER * _fraction(f"{key}/{streak}"))


def restart_delay(restart: RestartSpec, memory: Memory, key: str) -> float:
    """Seconds between an exit and the start that follows it."""
    return backoff(restart.backoff, restart.max_backoff, memory.streak, key)


def after_look(memory: Memory, container: Container, now: float) -> Memory:
    """The container was seen alive: where this is another run, it counts from now."""
    same = memory.ended is None and memory.run is not None and memory.run.is_of(container)
    if same:
        return memory
    run = Run(container.id, container.started_at, now, container.engine_restarts)
    return replace(memory, run=run, ended=None, starting="")


def restarts_by_others(memory: Memory, container: Container) -> int:
    """How often the container was started by others since it was last seen alive."""
    run = memory.run
    if run is None or run.container_id != container.id or run.is_of(container):
        return 0
    by_engine = max(container.engine_restarts - run.engine_restarts, 0)
    return by_engine if memory.starting == container.id else max(by_engine, 1)


def before_step(memory: Memory, action: Action, now: float) -> Memory:
    """Note what is about to be asked for, so that it is not taken for the deed of others."""
    match action.verb:
        case Verb.START:
            return replace(memory, starting=action.container_id)
        case Verb.PAUSE:
            return replace(memory, pause=Pause(action.container_id, ours=True, since=now))
        case _:
            return memory


def after_start(memory: Memory) -> Memory:
    """A container was started: an end like the last one is another end."""
    return replace(memory, ended=None)


def after_death(
    memory: Memory,
    container: Container,
    death: Death,
    restart: RestartSpec,
    key: str,
) -> Memory:
    """Take a death into account. A stable run, as long as the daemon saw it, ends the streak."""
    ran = death.seen_at - first_seen(memory, container, death.seen_at)
    settled = replace(memory, streak=0) if ran >= restart.reset_after else memory
    due = death.seen_at + restart_delay(restart, settled, key)
    return replace(settled, death=death, ended=End.of(container), not_before=due)


def first_seen(memory: Memory, container: Container, now: float) -> float:
    """When the daemon first saw the run that the container is in, or was in last; else now."""
    run = memory.run
    return run.seen_at if run is not None and run.is_of(container) else now


def is_end_of_engine(container: Container, *, watched: bool) -> bool:
    """Whether a container ended as those do whose engine or host goes down.

    ``watched``: the end came while the engine answered and the daemon listened.
    """
    return not watched and not container.oom_killed and container.exit_code in _ENGINE_ENDS


def after_own_stop(memory: Memory, container: Container) -> Memory:
    """A container ended because we stopped it: that is no death, and its start is due at once."""
    return replace(memory, ended=End.of(container), not_before=None)


def is_accounted(memory: Memory, container: Container) -> bool:
    """Whether the end of the container was already taken into account."""
    return memory.ended == End.of(container)


def is_own_stop(memory: Memory, container: Container) -> bool:
    """Whether the container ended because we stopped it."""
    return is_accounted(memory, container) and memory.not_before is None


def after_restart(memory: Memory) -> Memory:
    """A restart was begun."""
    return replace(memory, restarts=memory.restarts + 1, streak=memory.streak + 1)


def is_crash_loop_reported(streak: int) -> bool:
    """Whether so many restarts in a row are told of: the fifth, and each doubling after it."""
    rounds, rest = divmod(streak, _LOOP)
    return rest == 0 and rounds.bit_count() == 1


def unhealthy_restart_due(
    health: Health,
    memory: Memory,
    restart: RestartSpec,
    key: str,
) -> float:
    """When an unhealthy sandbox is restarted: observed seconds."""
    return health.since + restart_delay(restart, after_run(memory, health, restart), key)


def after_run(memory: Memory, health: Health, restart: RestartSpec) -> Memory:
    """A run became unhealthy: after a stable one the streak begins anew."""
    ran = health.since - health.seen_at
    return replace(memory, streak=0) if ran >= restart.reset_after else memory


def after_failure(
    memory: Memory,
    failed: Failure,
    restart: RestartSpec,
    key: str,
    *,
    swap: bool,
    relevant: Collection[str],
) -> Memory:
    """A step failed at ``failed.at``.

    ``relevant`` holds the spec hashes, ids and volume names that are still there; what failed for
    another edit, or on what is gone, is forgotten.
    """
    others = [f for f in memory.failures if matters(f, relevant) and f.about != failed.about]
    count = 1 + sum(f.count for f in memory.failures if f.about == failed.about)
    base, cap = (
        (_SWAP_BACKOFF, _SWAP_MAX_BACKOFF) if swap else (restart.backoff, restart.max_backoff)
    )
    due = failed.at + backoff(base, cap, count, key)
    return replace(memory, failures=(*others, replace(failed, count=count, not_before=due)))


def matters(failure: Failure, relevant: Collection[str]) -> bool:
    """Whether a failure is about what is still there; ``relevant`` as in ``after_failure``."""
    return failure.spec_hash in relevant and (not failure.target or failure.target in relevant)


def after_success(memory: Memory) -> Memory:
    """The sandbox is as desired: what failed on the way is over."""
    return replace(memory, failures=()) if memory.failures else memory


def failure_of(memory: Memory, about: FailureKey) -> Failure | None:
    """The failure of this step for this edit."""
    return next((f for f in memory.failures if f.about == about), None)


def is_unstartable(memory: Memory, container: Container) -> bool:
    """Whether the container can do nothing any more, by the engine's own words."""
    return any(f.wrecked == container.id and f.count >= _WRECKED_STARTS for f in memory.failures)


def keeps_failing(memory: Memory, container: Container) -> bool:
    """Whether it is time to find out if another container can be started in place of this one.

    It ran before, or the failures of its starts would not be about it.
    """
    return any(
        f.verb is Verb.START and f.target == container.id and f.count >= _FAILED_STARTS
        for f in memory.failures
    )


def fold(health: Health, spec: HealthSpec, bad_reason: str | None, now: float) -> Health:
    """One more probe result of the same run; ``bad_reason`` None is a good one."""
    if bad_reason is None:
        return _fold_good(health, spec, now)
    return _fold_bad(health, spec, bad_reason, now)


def _fold_good(health: Health, spec: HealthSpec, now: float) -> Health:
    counted = replace(health, good=health.good + 1, bad=0)
    if counted.good < spec.successes:
        return counted
    return _judged(replace(counted, reason=""), Verdict.GOOD, now)


def _fold_bad(health: Health, spec: HealthSpec, reason: str, now: float) -> Health:
    counted = replace(health, good=0, reason=reason)
    if now - health.seen_at < spec.startup_grace:
        return _judged(counted, Verdict.BAD, now)
    counted = replace(counted, bad=health.bad + 1)
    if counted.bad >= spec.failures:
        return _judged(counted, Verdict.UNHEALTHY, now)
    # One bad probe of a sandbox that was well is noise until it is repeated.
    return counted if health.verdict is Verdict.GOOD else _judged(counted, Verdict.BAD, now)


def _judged(health: Health, verdict: Verdict, now: float) -> Health:
    return health if health.verdict is verdict else replace(health, verdict=verdict, since=now)


def mass_delete_guard_engages(total: int, removed: int, *, count: int, percent: float) -> bool:
    """Whether an edit that takes ``removed`` of ``total`` records needs to be confirmed."""
    return removed > count and removed * 100.0 > percent * total


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
