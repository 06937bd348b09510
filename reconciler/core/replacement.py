"""Which container under a key plays which part, and whether it is what the record asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.core import naming, policy
from reconciler.core.container_config import same_spec
from reconciler.core.spec import DesiredState, OnChange

if TYPE_CHECKING:
    from reconciler.core.model import Container, Desired, Snapshot, Volume


@dataclass(frozen=True, slots=True)
class Roles:
    """The containers of one record.

    The current one bears the sandbox's name. A successor was made to replace it and never started.
    A predecessor was replaced, and is kept until its successor has started. A stand-in prepared a
    workspace and was left over. Strays have a name that is not expected: somebody renamed them.
    """

    current: Container | None
    successor: Container | None
    predecessor: Container | None
    stand_in: Container | None
    strays: tuple[Container, ...]


@dataclass(frozen=True, slots=True)
class Names:
    """The names under one key."""

    current: str
    successor: str
    predecessor: str
    stand_in: str
    volume: str


def names_of(snapshot: Snapshot) -> Names:
    """The names that the key's objects bear."""
    return Names(
        current=naming.container_name(snapshot.prefix, snapshot.key),
        successor=naming.successor_name(snapshot.prefix, snapshot.key),
        predecessor=naming.predecessor_name(snapshot.prefix, snapshot.key),
        stand_in=naming.stand_in_name(snapshot.prefix, snapshot.key),
        volume=naming.volume_name(snapshot.prefix, snapshot.key),
    )


def roles_of(snapshot: Snapshot) -> Roles:
    """Who is who."""
    names = names_of(snapshot)
    by_name = {container.name: container for container in snapshot.observed.containers}
    expected = {names.current, names.successor, names.predecessor, names.stand_in}
    return Roles(
        current=by_name.get(names.current),
        successor=by_name.get(names.successor),
        predecessor=by_name.get(names.predecessor),
        stand_in=by_name.get(names.stand_in),
        strays=tuple(c for c in snapshot.observed.containers if c.name not in expected),
    )


def wanted_volume(snapshot: Snapshot) -> str | None:
    """The workspace volume of a record that asks for one: it exists, or is to be made.

    Any volume of the sandbox is a candidate, since its name depends on a prefix that may have
    changed: the one that the current container mounts, then one that another container mounts,
    then the one with the name that would be given now, then the last by name.
    """
    if snapshot.desired is None or snapshot.desired.spec.workspace is None:
        return None
    names, current = names_of(snapshot), roles_of(snapshot).current
    mounted = {name for container in snapshot.observed.containers for name in container.volumes}
    found = max(
        snapshot.observed.volumes,
        key=lambda volume: (
            current is not None and volume.name in current.volumes,
            volume.name in mounted,
            volume.name == names.volume,
            volume.name,
        ),
        default=None,
    )
    return found.name if found else names.volume


def has_volume(snapshot: Snapshot, name: str) -> bool:
    """Whether the engine has that volume under this key."""
    return any(volume.name == name for volume in snapshot.observed.volumes)


def surplus_volumes(snapshot: Snapshot) -> tuple[Volume, ...]:
    """Volumes under the key that nothing asks for; none where volumes cannot be seen."""
    wanted = wanted_volume(snapshot)
    if not snapshot.sees_volumes:
        return ()
    return tuple(volume for volume in snapshot.observed.volumes if volume.name != wanted)


def drift(snapshot: Snapshot, desired: Desired, container: Container) -> str:
    """Why the container is not what the record asks for; empty where it is."""
    return spec_drift(desired, container) or _host_drift(snapshot, desired, container)


def replace_cause(snapshot: Snapshot, desired: Desired, container: Container) -> str:
    """Why the container is to be replaced now; empty where it is to be kept."""
    cause = spec_drift(desired, container)
    if cause and _may_replace(desired, container):
        return cause
    # A container that runs has its ports and its volume, whatever the books say.
    return "" if container.live else _host_drift(snapshot, desired, container)


def spec_drift(desired: Desired, container: Container) -> str:
    """Return what changed since the container was made; empty where nothing did."""
    known = desired.spec_hash is not None
    changed = known and not same_spec(container.spec_hash, desired.spec_hash or "")
    return desired.change_since(container.spec_hash) if changed else ""


def _host_drift(snapshot: Snapshot, desired: Desired, container: Container) -> str:
    """Why the host no longer has what the container was made with, whatever the spec says now."""
    leased = desired.identity.ports if desired.identity else {}
    if any(leased.get(inside, host) != host for inside, host in container.ports.items()):
        return "its host ports changed"
    mounted = (
        container.volumes if wanted_volume(snapshot) and snapshot.sees_volumes else frozenset()
    )
    if mounted and not any(has_volume(snapshot, volume) for volume in mounted):
        return "its workspace volume is gone"
    # One of an older spec that is to be kept is not replaced by another spec's to find out.
    doubtful = not spec_drift(desired, container) and policy.keeps_failing(
        snapshot.memory, container
    )
    if doubtful or policy.is_unstartable(snapshot.memory, container):
        return "the engine cannot start it any more"
    return ""


def _may_replace(desired: Desired, container: Container) -> bool:
    if desired.spec.on_change is OnChange.NEXT_START:
        return not container.live and desired.state is not DesiredState.STOPPED
    return desired.spec.on_change is OnChange.RECREATE
