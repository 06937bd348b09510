"""Drift: how a container differs from what its record asks for.

Engines fill in what a spec leaves open, such as swap. So the limits that the engine reports for a
new container are the baseline for that container, and not the spec.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler.core.container_config import same_spec
from reconciler.core.failures import is_unstartable, keeps_failing
from reconciler.core.restart import Baseline, SandboxMemory
from reconciler.core.spec import DesiredState, OnChange

if TYPE_CHECKING:
    from reconciler.core.observed import Container
    from reconciler.core.snapshot import Desired, Snapshot


def drift(snapshot: Snapshot, desired: Desired, container: Container) -> str:
    """Return why the container is not what the record asks for; empty if it is."""
    return spec_drift(desired, container) or _host_drift(snapshot, desired, container)


def replace_cause(snapshot: Snapshot, desired: Desired, container: Container) -> str:
    """Return why the container has to be replaced now; empty if it is kept."""
    if cause := spec_drift(desired, container):
        stopped = not container.live and desired.state is not DesiredState.STOPPED
        on_change = desired.spec.on_change
        if on_change is OnChange.RECREATE or (on_change is OnChange.NEXT_START and stopped):
            return cause
    # A live container has its ports and its volume, whatever the database says.
    return "" if container.live else _host_drift(snapshot, desired, container)


def spec_drift(desired: Desired, container: Container) -> str:
    """Return what changed in the spec since the container was made; empty if nothing did."""
    known = desired.spec_hash is not None
    changed = known and not same_spec(container.spec_hash, desired.spec_hash or "")
    return desired.change_since(container.spec_hash) if changed else ""


def _host_drift(snapshot: Snapshot, desired: Desired, container: Container) -> str:
    """Return which part of the host the container can no longer use, whatever the spec says."""
    leased = desired.identity.ports if desired.identity else {}
    if any(leased.get(inside, host) != host for inside, host in container.ports.items()):
        return "its host ports changed"
    sees_mounts = snapshot.wanted_volume and snapshot.sees_volumes
    mounted = container.volumes if sees_mounts else frozenset()
    if mounted and not any(map(snapshot.has_volume, mounted)):
        return "its workspace volume is gone"
    # A container of an older spec that is kept is not replaced by one of another spec as a trial.
    trial = not spec_drift(desired, container) and keeps_failing(snapshot.memory, container)
    if trial or is_unstartable(snapshot.memory, container):
        return "the engine can no longer start it"
    return ""


def limits_drift(memory: SandboxMemory, container: Container) -> str:
    """Return for instance ``memory is 64, not 128``; empty if the limits are as wanted."""
    baseline = memory.baseline
    if baseline is None or baseline.container_id != container.id:
        return ""
    changes = container.limits.changed_to(baseline.limits)
    return ", ".join(
        f"{name} is {old or 'unset'}, not {new or 'unset'}" for name, (old, new) in changes.items()
    )


def baseline_of(desired: Desired, container: Container) -> Baseline:
    """Return the limits to hold a container to that has no baseline yet.

    A container that ran before is adopted, and others may have changed its limits. So limits that
    its spec does not ask for, or contradicts, do not become part of the baseline. An engine without
    support for a limit reports none.
    """
    limits = replace(container.limits, restart_policy="no")
    if container.started_at is None or container.spec_hash != desired.spec_hash:
        return Baseline(container.id, limits)
    resources = desired.spec.resources
    memory = limits.memory and (resources.memory or 0)
    specified = replace(
        limits,
        nano_cpus=limits.nano_cpus and round((resources.cpus or 0) * 1e9),
        cpu_quota=0,
        cpu_shares=0,
        cpuset="",
        memory=memory,
        memory_swap=limits.memory_swap if memory == limits.memory else 2 * (resources.memory or 0),
        memory_reservation=0,
        pids=limits.pids and (resources.pids or 0),
    )
    return Baseline(container.id, specified)
