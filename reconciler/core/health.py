"""Fold probe results into the health of one run of a container."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reconciler.core.observed import Container
    from reconciler.core.spec import HealthSpec


class Verdict(StrEnum):
    """The conclusion from the probe results of one run."""

    UNKNOWN = "unknown"
    GOOD = "good"
    BAD = "bad"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Health:
    """The folded probe results of one run of a container.

    The container's id and start date identify the run. ``seen_at`` is when the daemon first saw
    it, ``since`` when the verdict was reached. ``good`` and ``bad`` count the last results of that
    kind in a row; ``reason`` is that of the last bad one. ``unknown`` says why the sandbox cannot
    be probed now; empty if it can.
    """

    container_id: str = ""
    started_at: float | None = None
    seen_at: float = 0.0
    verdict: Verdict = Verdict.UNKNOWN
    since: float = 0.0
    good: int = 0
    bad: int = 0
    reason: str = ""
    unknown: str = ""


def fold(health: Health, spec: HealthSpec, bad_reason: str | None, now: float) -> Health:
    """Add one probe result of the same run; ``bad_reason`` None is a good one."""
    if bad_reason is None:
        counted = replace(health, good=health.good + 1, bad=0)
        if counted.good < spec.successes:
            return counted
        return _judged(replace(counted, reason=""), Verdict.GOOD, now)
    counted = replace(health, good=0, reason=bad_reason)
    if now - health.seen_at < spec.startup_grace:
        return _judged(counted, Verdict.BAD, now)
    counted = replace(counted, bad=health.bad + 1)
    if counted.bad >= spec.failures:
        return _judged(counted, Verdict.UNHEALTHY, now)
    # One bad probe of a healthy sandbox is noise until it is repeated.
    return counted if health.verdict is Verdict.GOOD else _judged(counted, Verdict.BAD, now)


def _judged(health: Health, verdict: Verdict, now: float) -> Health:
    return health if health.verdict is verdict else replace(health, verdict=verdict, since=now)


def verdict_of(health: Health, container: Container) -> Verdict:
    """Return the verdict on this run of the container; that on an earlier run does not count."""
    same_run = (health.container_id, health.started_at) == (container.id, container.started_at)
    return health.verdict if same_run else Verdict.UNKNOWN
