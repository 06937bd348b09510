"""Define what the daemon needs from a container engine.

Every method has a timeout and raises only errors of ``reconciler.core.errors``:
``EngineUnavailable`` if the outcome is unknown, the others if the engine refused. Every change is
idempotent: it succeeds if the object already is in the requested state.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from reconciler.core import naming

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from reconciler.core.container_config import ContainerConfig
    from reconciler.core.errors import Forbidden
    from reconciler.core.observed import Container, Phase, ResourceLimits, Volume


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The engine's name, versions, data folder and abilities.

    Attributes:
        root: Folder of its data, on the engine's host.
        missing_limits: Fields of ``resources`` that it cannot enforce.
        local: It was reached through a socket of this host, so ``root`` usually is a folder here.
        gateway: Its address on its default bridge; empty if unknown.
    """

    name: str
    version: str
    api_version: str
    root: str
    rootless: bool = False
    missing_limits: tuple[str, ...] = ()
    local: bool = False
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of a container list: enough to see whether an inspection is needed."""

    id: str
    name: str
    sandbox: str
    phase: Phase
    owner: str = ""


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """One row of a list that cannot be decoded.

    ``id`` is a container's id or a volume's name. Both ``id`` and ``sandbox`` may be empty.
    """

    id: str
    sandbox: str
    error: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects with the instance's label. A partial response raises instead.

    ``sees_volumes`` is False if the engine, or a proxy in front of it, forbids listing volumes.
    """

    containers: tuple[Summary, ...]
    volumes: tuple[Volume, ...]
    broken_containers: tuple[BrokenRow, ...] = ()
    broken_volumes: tuple[BrokenRow, ...] = ()
    sees_volumes: bool = True

    @property
    def holders(self) -> dict[str, str]:
        """The owners that have a marker, by which daemons know each other.

        The value is the id of the daemon that keeps the marker of a lost owner; empty where the
        owner itself keeps it.
        """
        return {v.owner: v.nonce for v in self.volumes if _is_marker(v)}

    @property
    def owning(self) -> set[str]:
        """The owners of containers and workspaces."""
        volumes = (volume for volume in self.volumes if not _is_marker(volume))
        return {c.owner for c in self.containers} | {v.owner for v in volumes}

    @property
    def owners(self) -> set[str]:
        """Every owner that a label names; an empty one for a missing label."""
        return {c.owner for c in self.containers} | {v.owner for v in self.volumes}


def _is_marker(volume: Volume) -> bool:
    return volume.name == naming.marker_name(volume.instance, volume.owner)


class EventKind(StrEnum):
    """The kind of object of an event."""

    CONTAINER = "container"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """A hint that an object may have changed. ``sandbox`` is empty if it is unknown.

    ``id`` is a container's id or a volume's name; ``what`` is the engine's verb (start, die).
    """

    kind: EventKind
    id: str
    what: str
    sandbox: str
    at: float


@dataclass(frozen=True, slots=True)
class PullProgress:
    """The progress of a pull. ``bytes_total`` is 0 while it is unknown."""

    layers_done: int
    layers: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the host, of this instance or not.

    Attributes:
        references: Its tags, else its digests.
        size: Bytes, including shared layers.
        in_use: False also if the engine does not report it, which is usual.
    """

    id: str
    references: tuple[str, ...]
    size: int
    in_use: bool = False


class Engine(Protocol):
    """One engine, as one instance sees it: lists and events only show the instance's objects."""

    async def close(self) -> None:
        """Close every connection."""

    def forbidden(self) -> Sequence[Forbidden]:
        """Return one error for each part of the API that was forbidden recently."""

    def warnings(self) -> Sequence[str]:
        """Return each distinct warning that the engine sent when it created containers."""

    async def ping(self) -> None:
        """Return if the engine answers, else raise."""

    async def info(self) -> EngineInfo:
        """Return the engine's name, versions, data folder and abilities."""

    async def list(self) -> Listing:
        """List containers in every phase, and volumes."""

    async def inspect(self, container_id: str) -> Container | None:
        """Return a container by id or name; None if missing or of another instance."""

    async def inspect_volume(self, name: str) -> Volume | None:
        """Return a volume by name, with any labels; None if it is missing."""

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Iterate over events from now on. Entered once the engine accepted the subscription.

        The iteration ends with the stream, for any reason; this method does not reconnect.
        """

    async def create_volume(self, name: str, labels: Mapping[str, str]) -> Volume:
        """Create the volume and return it, or return the existing one with its labels."""

    async def remove_volume(self, name: str) -> None:
        """Remove the volume, with any labels. One that is gone is a success.

        Raises:
            Busy: a container still uses it.
        """

    async def create(self, config: ContainerConfig) -> str:
        """Create the container, without starting it, and return its id.

        If a container with the same name and nonce exists, its id is returned: an earlier create
        made it, and its response was lost.

        Raises:
            ImageNotFound: the image is missing.
            NameTaken: another container has the name.
            Refused: the engine rejects it: a mount's source is missing, an option is wrong.
        """

    async def prepare(self, container_id: str, stand_in: ContainerConfig) -> None:
        """Set the owner of the workspace to the sandbox's user, before the first start.

        If the container itself cannot be used for that, a temporary one with the name and labels
        of ``stand_in`` is created and removed.
        """

    async def start(self, container_id: str) -> None:
        """Start the container.

        Raises:
            PortTaken: another process uses a host port.
            Refused: it cannot be started: no such program, no such device.
            Unstartable: leftovers of an earlier run are in the way.
        """

    async def stop(self, container_id: str, grace: float) -> None:
        """Send the stop signal, kill after ``grace`` seconds, return when it has exited."""

    async def pause(self, container_id: str) -> None:
        """Freeze the container's processes."""

    async def unpause(self, container_id: str) -> None:
        """Continue the container's processes."""

    async def update(self, container_id: str, limits: ResourceLimits) -> ResourceLimits:
        """Change limits and restart policy, without a restart.

        If the engine cannot remove a limit, it sets the highest one, which has the same effect.

        Returns:
            The limits as the engine words them after the change.

        Raises:
            Refused: the engine rejects it, such as a limit below current use, or ignores it.
        """

    async def rename(self, container_id: str, name: str) -> None:
        """Rename the container.

        Raises:
            NameTaken: another container has the name.
        """

    async def remove(self, container_id: str) -> None:
        """Kill and remove the container with its anonymous volumes; return when it is gone.

        Raises:
            Removing: the engine is still removing it; many files take long.
        """

    async def has_image(self, image: str) -> bool:
        """Return whether a create would find the image."""

    async def image_id(self, image: str) -> str | None:
        """Return the id of the image that a create would find; None without one."""

    async def image_labels(self, image_id: str) -> Mapping[str, str]:
        """Return the labels that a container inherits from this image.

        Raises:
            NotFound: the image is missing.
        """

    async def images(self) -> Sequence[Image]:
        """List all images of the host except intermediate layers of builds."""

    async def remove_image(self, image_id: str) -> None:
        """Remove an unused image; one that is gone is a success.

        Raises:
            Busy: a container in any phase uses it, it has more than one name, or another image
                depends on it.
        """

    async def pull(self, image: str, progress: Callable[[PullProgress], None]) -> None:
        """Pull the image with the user's own credentials for its registry.

        Raises:
            PullFailed: the registry does not provide it.
        """

    async def log_tail(self, container_id: str, lines: int, *, since: float = 0.0) -> Sequence[str]:
        """Return the last lines of both streams, each cut at a limit; only those after ``since``.

        Bytes that are not UTF-8 are decoded with ``surrogateescape``.
        """

    def follow_logs(
        self, container_id: str, lines: int
    ) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Iterate over the last lines, each cut at a limit, and then new ones."""

    async def run_in(self, container_id: str, command: Sequence[str], limit: float) -> int:
        """Run a command in the container and return its exit code.

        Raises:
            CommandTimeout: it did not end within ``limit`` seconds; it keeps running.
        """
