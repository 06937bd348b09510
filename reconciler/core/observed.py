"""Engine objects, as the engine described them.

The dates (``created_at``, ``started_at``, ``finished_at``) are seconds since the epoch by the
engine's clock. They are shown and compared with each other for equality, never with observed
seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Phase(StrEnum):
    """The engine's state of a container, in the engine's words."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


class CheckState(StrEnum):
    """The result of a running container's HEALTHCHECK, in the engine's words."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Check:
    """The state of the HEALTHCHECK of a container's image, which the engine runs.

    ``result`` is unique to the last result, and empty before the first.
    """

    state: CheckState
    result: str = ""


@dataclass(frozen=True, slots=True)
class ResourceLimits:
    """The settings of a container that can be changed in place. 0 and "" mean no limit.

    ``nano_cpus`` are billionths of a core; ``cpu_quota`` is in microseconds per period. Memory is
    in bytes. ``memory_swap`` is memory plus swap, and -1 if swap is unlimited.
    """

    restart_policy: str = "no"
    nano_cpus: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    cpuset: str = ""
    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    pids: int = 0
    network: str = ""

    def changed_to(self, other: ResourceLimits) -> dict[str, tuple[int | str, int | str]]:
        """Return the fields that differ, each with its value in ``self`` and in ``other``."""
        pairs = {
            each.name: (getattr(self, each.name), getattr(other, each.name))
            for each in fields(self)
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True, slots=True)
class Container:
    """One container with our instance label, from one engine response.

    ``started_at`` is None if it was never started. ``ports`` maps container ports to the host ports
    that it was created with, in every phase. ``volumes`` has the names of its named volumes.
    ``check`` is None if its image has no HEALTHCHECK or it is switched off. ``owner``, ``nonce``
    and ``base`` (the sandbox's container name) come from its labels. ``engine_restarts`` counts
    restarts by the engine's restart policy since its last start by a client.
    """

    id: str
    name: str
    sandbox: str
    spec: str
    spec_hash: str
    phase: Phase
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    ports: Mapping[int, int] = field(default_factory=dict)
    volumes: frozenset[str] = frozenset()
    image: str = ""
    image_id: str = ""
    stop_timeout: float = 10.0
    check: Check | None = None
    session_key: str | None = field(default=None, repr=False)
    owner: str = ""
    nonce: str = ""
    base: str = ""
    engine_restarts: int = 0
    limits: ResourceLimits = ResourceLimits()

    @property
    def live(self) -> bool:
        """Whether it has processes, or is about to."""
        return self.phase in {Phase.RUNNING, Phase.PAUSED, Phase.RESTARTING}


@dataclass(frozen=True, slots=True)
class Volume:
    """One named volume. ``retain``, ``instance``, ``owner``, ``nonce`` and ``base`` are its labels.

    ``adopted``: it belongs to a sandbox but was not made by this project, so it is never removed.
    """

    name: str
    sandbox: str
    retain: str = ""
    instance: str = ""
    owner: str = ""
    nonce: str = ""
    base: str = ""
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """The engine objects that were created or adopted for one sandbox of an instance.

    ``pending`` maps the name of each requested create to the nonce in the object's label, until the
    object is seen. ``used`` maps the latest nonces that were seen to their names, since the engine
    may still carry out a create that timed out. ``containers`` has ids, the newest last.
    ``adopted`` has the ids and volume names that a user adopted, whatever their labels say.
    """

    instance: str = ""
    pending: Mapping[str, str] = field(default_factory=dict)
    used: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    adopted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """The engine objects under one key."""

    containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()

    def container(self, container_id: str) -> Container | None:
        """Return the container with this id, or None."""
        return next((c for c in self.containers if c.id == container_id), None)
