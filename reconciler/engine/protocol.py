"""What an engine must be able to do, in this project's own words.

Every method has a timeout of its own and raises only errors of ``reconciler.core.errors``:
``EngineUnavailable`` where the outcome is unknown, the others where the engine said no. Every
change is idempotent: what already is so is a success.
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
    from reconciler.core.model import Container, Limits, Phase, Volume


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Who the engine is. ``root`` is the folder where it keeps its data, on its own host.

    ``missing_limits`` are those of ``resources`` that it cannot enforce.

    ``local``: it was reached by a socket of this host, so ``root`` is, as a rule, a folder here.
    ``gateway`` is its address on its default bridge; empty where it has none or does not say.
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
    """One line of a list: enough to see whether an inspection is needed."""

    id: str
    name: str
    sandbox: str
    phase: Phase
    owner: str = ""


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """One row of a list that cannot be read. ``id`` and ``sandbox`` are empty where they cannot.

    ``id`` is a container's id or a volume's name.
    """

    id: str
    sandbox: str
    error: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All that bears the instance's label, or nothing: a partial answer raises.

    ``sees_volumes`` is False where the engine, or a proxy before it, forbids to list volumes.
    """

    containers: tuple[Summary, ...]
    volumes: tuple[Volume, ...]
    broken_containers: tuple[BrokenRow, ...] = ()
    broken_volumes: tuple[BrokenRow, ...] = ()
    sees_volumes: bool = True

    @property
    def markers(self) -> set[str]:
        """The owners that have a marker: a volume by which a daemon is known to the others."""
        return {v.owner for v in self.volumes if v.name == naming.marker_name(v.instance, v.owner)}

    @property
    def owners(self) -> set[str]:
        """Every owner that a label names; an empty one where a label is missing."""
        return {c.owner for c in self.containers} | {v.owner for v in self.volumes}


class EventKind(StrEnum):
    """What an event is about."""

    CONTAINER = "container"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """A hint that something may have changed. ``sandbox`` is empty where the engine does not say.

    ``id`` is a container's id or a volume's name; ``what`` is the engine's own verb (start, die).
    """

    kind: EventKind
    id: str
    what: str
    sandbox: str
    at: float


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is. ``total`` is 0 while it is not known."""

    layers_done: int
    layers: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class Image:
    """One image of the host, whoever's it is. ``size`` is in bytes, those that it shares too.

    ``references`` are its tags, else its digests. ``in_use`` is False also where the engine does
    not say, which is the rule.
    """

    id: str
    references: tuple[str, ...]
    size: int
    in_use: bool = False


class Engine(Protocol):
    """One engine, seen by one instance: it lists and hears only what bears the instance's label."""

    async def close(self) -> None:
        """Let go of every connection."""

    def forbidden(self) -> Sequence[Forbidden]:
        """One error for each part of the engine's API that was forbidden lately."""

    def warnings(self) -> Sequence[str]:
        """What the engine warned of when it made containers: each text once."""

    async def ping(self) -> None:
        """Return if the engine answers."""

    async def info(self) -> EngineInfo:
        """Who the engine is."""

    async def list(self) -> Listing:
        """Containers in every phase, and volumes."""

    async def inspect(self, container_id: str) -> Container | None:
        """One container by id or name; None where it is not there or is not of this instance."""

    async def inspect_volume(self, name: str) -> Volume | None:
        """One volume by name, whatever labels it has; None where it is not there."""

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Events from now on. Entered once the engine has accepted the subscription.

        The iteration ends when the stream does, for whatever reason; nobody reconnects here.
        """

    async def create_volume(self, name: str, labels: Mapping[str, str]) -> Volume:
        """Make the volume and return it; the one that exists already, with its labels, if any."""

    async def remove_volume(self, name: str) -> None:
        """Remove the volume, whatever labels it has; one that is gone is a success.

        Raises:
            Busy: a container still uses it.
        """

    async def create(self, blueprint: ContainerConfig) -> str:
        """Make the container, without starting it, and return its id.

        Where a container of the same name exists, its id is returned if it has the same nonce: an
        earlier create made it, whose answer was lost.

        Raises:
            ImageNotFound: the image is not there.
            NameTaken: another container has the name.
            Refused: the engine will not make it: a mount's source is missing, an option is wrong.
        """

    async def prepare(self, container_id: str, stand_in: ContainerConfig) -> None:
        """Make the workspace belong to the sandbox's user, before the first start.

        Where the container itself cannot be used for that, one with the name and the labels of
        ``stand_in`` is made for the moment, and removed.
        """

    async def start(self, container_id: str) -> None:
        """Start it.

        Raises:
            PortTaken: a host port is held by somebody else.
            Refused: it cannot be started: no such program, no such device.
        """

    async def stop(self, container_id: str, grace: float) -> None:
        """Ask it to end, kill it after ``grace`` seconds, return when it has ended."""

    async def pause(self, container_id: str) -> None:
        """Freeze its processes."""

    async def unpause(self, container_id: str) -> None:
        """Thaw its processes."""

    async def update(self, container_id: str, limits: Limits) -> None:
        """Give it these limits and this restart policy, without a restart.

        Where the engine cannot take a limit away, it gets the highest one that has the same effect.

        Raises:
            Refused: the engine will not, for instance as more is in use, or it had no effect.
        """

    async def rename(self, container_id: str, name: str) -> None:
        """Give it another name.

        Raises:
            NameTaken: another container has the name.
        """

    async def remove(self, container_id: str) -> None:
        """Kill it if it lives and remove it with its anonymous volumes; return when it is gone.

        Raises:
            Removing: the engine is still at it; the more files a container has, the longer.
        """

    async def has_image(self, image: str) -> bool:
        """Whether a create would find the image."""

    async def image_id(self, image: str) -> str | None:
        """The id of the image that a create would find."""

    async def image_labels(self, image_id: str) -> Mapping[str, str]:
        """The labels that a container of this image inherits.

        Raises:
            NotFound: the image is not there.
        """

    async def images(self) -> Sequence[Image]:
        """All images of the host but the layers of a build."""

    async def remove_image(self, image_id: str) -> None:
        """Remove an image that nothing uses; one that is gone is a success.

        Raises:
            Busy: a container in any phase uses it, it has more than one name, or another image was
                made from it.
        """

    async def pull(self, image: str, progress: Callable[[PullProgress], None]) -> None:
        """Pull the image with the user's own credentials for its registry.

        Raises:
            PullFailed: it cannot be had.
        """

    async def log_tail(self, container_id: str, lines: int, *, since: float = 0.0) -> Sequence[str]:
        """The last lines of both streams, each cut at a bound; only those after ``since``.

        Bytes that are not UTF-8 are decoded with ``surrogateescape``.
        """

    def follow_logs(
        self, container_id: str, lines: int
    ) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """The last lines, each cut at a bound, and then more as they come."""

    async def run_in(self, container_id: str, command: Sequence[str], limit: float) -> int:
        """Run a command in it and return its exit code.

        Raises:
            CommandTimeout: it did not end within ``limit`` seconds; it keeps running.
        """
