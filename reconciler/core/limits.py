"""The limits that a container is to have, and how those that it has differ.

Engines fill in what a spec leaves open, such as swap. So what the engine says of a new container is
the measure for that container, and not the spec.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler.core.model import Baseline

if TYPE_CHECKING:
    from reconciler.core.model import Container, Desired, Limits, Memory


def baseline_of(desired: Desired, container: Container) -> Baseline:
    """The measure for a container that has none yet.

    One that ran before is adopted: others may have changed it. What its spec does not ask for, and
    what contradicts its spec, is then taken for a change. An engine that does not support a limit
    leaves it out, which is none.
    """
    limits = replace(container.limits, restart_policy="no")
    if container.started_at is not None and container.spec_hash == desired.spec_hash:
        limits = _as_specified(desired, limits)
    return Baseline(container.id, limits)


def limits_drift(memory: Memory, container: Container) -> str:
    """``memory is 64, not 128``, where the limits differ; empty where they are as wanted."""
    baseline = memory.baseline
    if baseline is None or baseline.container_id != container.id:
        return ""
    changes = container.limits.changed_to(baseline.limits)
    return ", ".join(
        f"{name} is {old or 'unset'}, not {new or 'unset'}" for name, (old, new) in changes.items()
    )


def _as_specified(desired: Desired, seen: Limits) -> Limits:
    resources = desired.spec.resources
    cpus = round((resources.cpus or 0) * 1e9)
    memory = resources.memory or 0
    limits = replace(
        seen,
        nano_cpus=seen.nano_cpus and cpus,
        cpu_quota=0,
        cpu_shares=0,
        cpuset="",
        memory=seen.memory and memory,
        memory_reservation=0,
        pids=seen.pids and (resources.pids or 0),
    )
    return limits if limits.memory == seen.memory else replace(limits, memory_swap=2 * memory)
