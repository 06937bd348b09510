"""The snapshot: everything that a decision about one key is made from.

Times are observed seconds, see ``core/restart.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from reconciler.core import naming
from reconciler.core.health import Health
from reconciler.core.restart import SandboxMemory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.core.action import Blocker, Source, Verb
    from reconciler.core.observed import Container, Observed, Volume
    from reconciler.core.spec import DesiredState, SandboxSpec


@dataclass(frozen=True, slots=True)
class Identity:
    """What a sandbox keeps when it is restarted or recreated: session key and host ports.

    ``ports`` maps container ports to leased host ports.
    """

    session_key: str = field(repr=False)
    ports: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Desired:
    """One record, with the hash of everything that its container is made from.

    ``spec_hash`` is None while it is unknown, for instance because the env file cannot be read;
    then nothing is made or replaced. ``identity`` is None until it is leased. ``changes`` maps
    former hashes to what has changed since, as far as this process saw it.
    """

    name: str
    state: DesiredState
    spec_name: str
    spec: SandboxSpec
    spec_hash: str | None
    identity: Identity | None
    changes: Mapping[str, str] = field(default_factory=dict)

    def change_since(self, spec_hash: str) -> str:
        """Return what has changed since a container was made with that hash."""
        unknown = "its spec or its env_file changed" if self.spec.env_file else "the spec changed"
        return self.changes.get(spec_hash, unknown)


class ImageState(StrEnum):
    """What is known of a spec's image. UNKNOWN is treated as present: a create will tell."""

    UNKNOWN = "unknown"
    ABSENT = "absent"
    PULLING = "pulling"
    FRESH = "fresh"


@dataclass(frozen=True, slots=True)
class Orphans:
    """When each orphan under the key was first seen.

    ``containers`` maps ids and ``volumes`` maps names to observed seconds. ``retain`` maps volume
    names to seconds, or to None for indefinitely. ``held`` has the ids and volume names that the
    mass-delete guard keeps until their removal is confirmed.
    """

    containers: Mapping[str, float] = field(default_factory=dict)
    volumes: Mapping[str, float] = field(default_factory=dict)
    retain: Mapping[str, float | None] = field(default_factory=dict)
    held: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the objects under one key."""

    current: str
    successor: str
    predecessor: str
    stand_in: str
    volume: str


@dataclass(frozen=True, slots=True)
class Roles:
    """The containers of one record, each with the role that its name gives it.

    current: has the sandbox's name. successor: made to replace it, never started. predecessor:
    replaced, and kept until its successor has started. stand_in: left over from preparing a
    workspace. strays: have an unexpected name, since somebody renamed them.
    """

    current: Container | None
    successor: Container | None
    predecessor: Container | None
    stand_in: Container | None
    strays: tuple[Container, ...]


@dataclass(frozen=True)
class Snapshot:
    """Everything that a decision about one key is made from, as of ``now``.

    ``desired`` None: the sandbox should not exist. ``deleted``: its record was removed from the
    desired file; otherwise, without a record, its containers are orphans. ``blockers`` come in
    order of importance. ``taken_names`` belong to containers that ``observed`` leaves out.
    ``may_collect``: it is certain that no record wants the orphans under the key.
    ``sees_volumes``: the engine shows its volumes.
    """

    key: str
    prefix: str
    desired: Desired | None
    observed: Observed
    now: float
    memory: SandboxMemory = field(default_factory=SandboxMemory)
    health: Health = field(default_factory=Health)
    image: ImageState = ImageState.UNKNOWN
    deleted: bool = False
    orphans: Orphans = Orphans()
    gc_grace: float = 300.0
    pause_grace: float = 0.0
    may_collect: bool = True
    blockers: tuple[Blocker, ...] = ()
    taken_names: frozenset[str] = frozenset()
    sees_volumes: bool = True

    @cached_property
    def names(self) -> Names:
        """The names that objects under the key have, or would get."""
        return Names(
            current=naming.container_name(self.prefix, self.key),
            successor=naming.successor_name(self.prefix, self.key),
            predecessor=naming.predecessor_name(self.prefix, self.key),
            stand_in=naming.stand_in_name(self.prefix, self.key),
            volume=naming.volume_name(self.prefix, self.key),
        )

    @cached_property
    def roles(self) -> Roles:
        """The observed containers by role."""
        names = self.names
        by_name = {container.name: container for container in self.observed.containers}
        expected = {names.current, names.successor, names.predecessor, names.stand_in}
        return Roles(
            current=by_name.get(names.current),
            successor=by_name.get(names.successor),
            predecessor=by_name.get(names.predecessor),
            stand_in=by_name.get(names.stand_in),
            strays=tuple(c for c in self.observed.containers if c.name not in expected),
        )

    @cached_property
    def wanted_volume(self) -> str | None:
        """The workspace volume that the record wants, whether it exists or not.

        Any volume of the sandbox is a candidate, since the prefix in its name may have changed.
        The order: mounted by the current container, mounted by another one, named as a new one
        would be, the last by name.
        """
        if self.desired is None or self.desired.spec.workspace is None:
            return None
        current = self.roles.current
        mounted = {name for container in self.observed.containers for name in container.volumes}
        found = max(
            self.observed.volumes,
            key=lambda volume: (
                current is not None and volume.name in current.volumes,
                volume.name in mounted,
                volume.name == self.names.volume,
                volume.name,
            ),
            default=None,
        )
        return found.name if found else self.names.volume

    @cached_property
    def surplus_volumes(self) -> tuple[Volume, ...]:
        """The volumes that no record wants; none while volumes cannot be seen."""
        if not self.sees_volumes:
            return ()
        return tuple(v for v in self.observed.volumes if v.name != self.wanted_volume)

    def has_volume(self, name: str) -> bool:
        """Whether the engine has that volume under this key."""
        return any(volume.name == name for volume in self.observed.volumes)

    def blocker(self, verb: Verb) -> Blocker | None:
        """Return what prevents the action now, if anything."""
        active = (b for b in self.blockers if b.until is None or b.until > self.now)
        return next((b for b in active if b.verb is verb), None)

    def reason(self, *sources: Source) -> str:
        """Return the reason of the first blocker from these sources, or an empty string."""
        return next((b.reason for b in self.blockers if b.source in sources), "")
