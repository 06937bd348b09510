"""The rules of time: backoff, restart memory, probe folding, the mass-delete brake."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core.model import Failure, Health, Memory, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection

    from reconciler.core.model import Concern, Container, Death
    from reconciler.core.spec import HealthSpec, RestartSpec

_JITTER: Final = 0.1
# A replacement that could not be started costs its sandbox a stop and a start each time it is tried
# again, so it is tried again seldom.
_SWAP_BACKOFF: Final = 60.0
_SWAP_MAX_BACKOFF: Final = 3600.0
_MAX_EXPONENT: Final = 32
_WRECKED_STARTS: Final = 3
_LOOP: Final = 5


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


def after_death(
    memory: Memory,
    container: Container,
    death: Death,
    restart: RestartSpec,
    key: str,
) -> Memory:
    """A container ended by itself: after a stable run the streak begins anew."""
    ran = death.finished_at - (container.started_at or death.finished_at)
    settled = replace(memory, streak=0) if ran >= restart.reset_after else memory
    due = death.finished_at + restart_delay(restart, settled, key)
    return replace(settled, death=death, last_exit=death.finished_at, not_before=due)


def after_own_stop(memory: Memory, finished_at: float) -> Memory:
    """A container ended because we stopped it: that is no death, and its start is due at once."""
    return replace(memory, last_exit=finished_at, not_before=0.0)


def after_restart(memory: Memory) -> Memory:
    """A restart was begun."""
    return replace(memory, restarts=memory.restarts + 1, streak=memory.streak + 1)


def is_loop_told(streak: int) -> bool:
    """Whether so many restarts in a row are told of: the fifth, and each doubling after it."""
    rounds, rest = divmod(streak, _LOOP)
    return rest == 0 and rounds.bit_count() == 1


def unhealthy_restart_due(
    health: Health,
    memory: Memory,
    restart: RestartSpec,
    key: str,
) -> float:
    """When an unhealthy sandbox is restarted: seconds since the epoch."""
    return health.since + restart_delay(restart, after_run(memory, health, restart), key)


def after_run(memory: Memory, health: Health, restart: RestartSpec) -> Memory:
    """A run became unhealthy: after a stable one the streak begins anew."""
    ran = health.since - (health.started_at or health.since)
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
    others = [f for f in memory.failures if _matters(f, relevant) and f.about != failed.about]
    count = 1 + sum(f.count for f in memory.failures if f.about == failed.about)
    base, cap = (
        (_SWAP_BACKOFF, _SWAP_MAX_BACKOFF) if swap else (restart.backoff, restart.max_backoff)
    )
    due = failed.at + backoff(base, cap, count, key)
    return replace(memory, failures=(*others, replace(failed, count=count, not_before=due)))


def _matters(failure: Failure, relevant: Collection[str]) -> bool:
    return failure.spec_hash in relevant and (not failure.target or failure.target in relevant)


def after_success(memory: Memory) -> Memory:
    """The sandbox is as desired: what failed on the way is over."""
    return replace(memory, failures=()) if memory.failures else memory


def failure_of(memory: Memory, about: Concern) -> Failure | None:
    """The failure of this step for this edit."""
    return next((f for f in memory.failures if f.about == about), None)


def is_beyond_repair(memory: Memory, container_id: str) -> bool:
    """Whether starts of the container failed too often over remains that are in its way.

    An engine that comes back may still be clearing them away: hence not at the first.
    """
    return any(f.wrecked == container_id and f.count >= _WRECKED_STARTS for f in memory.failures)


def failure_due(failure: Failure, now: float) -> float:
    """When the step is due again: at once where the clock was set back to before it failed."""
    return failure.not_before if failure.at <= now else now


def not_later_than(due: float, now: float, longest: float) -> float:
    """``due``, or ``longest`` from now: after the clock was set back, a time to look again."""
    return min(due, now + longest)


def in_reach(due: float, now: float, longest: float) -> float:
    """``due``, or now where no wait of ``longest`` leads there: the clock was set back since.

    An engine's clock may be ahead of ours by as much again.
    """
    return due if due <= now + 2 * longest else now


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
    # Where it started long after now, the clock was set back since.
    if -spec.startup_grace <= now - (health.started_at or 0.0) < spec.startup_grace:
        return _judged(counted, Verdict.BAD, now)
    counted = replace(counted, bad=health.bad + 1)
    if counted.bad >= spec.failures:
        return _judged(counted, Verdict.UNHEALTHY, now)
    # One bad probe of a sandbox that was well is noise until it is repeated.
    return counted if health.verdict is Verdict.GOOD else _judged(counted, Verdict.BAD, now)


def _judged(health: Health, verdict: Verdict, now: float) -> Health:
    return health if health.verdict is verdict else replace(health, verdict=verdict, since=now)


def brake_engages(total: int, removed: int, *, count: int, percent: float) -> bool:
    """Whether an edit that takes ``removed`` of ``total`` records needs to be confirmed."""
    return removed > count and removed * 100.0 > percent * total


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) / 2**32
