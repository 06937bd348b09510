"""What is known of the engine's objects, and which of it may have changed.

What is cached of a container came from one inspection of it. Events and lists only say what to
inspect again; the inspection itself happens in the key's own pass, so it is serial with everything
else that is done for the key.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from reconciler.core.errors import EngineError, EngineUnavailable
from reconciler.core.model import Observed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from reconciler.core.model import Container, Volume
    from reconciler.engine.protocol import Engine, Listing, Summary
    from reconciler.observe.ownership import Ownership

T = TypeVar("T")

# Seconds that a list may lag behind what this process did to a volume.
_LIST_SLACK: Final = 30.0
_CONCURRENT_INSPECTIONS: Final = 16
# Seconds between two lists that only confirm what is known: many deletions share one.
_LIST_SPACING: Final = 1.0
# Ids to inspect under one key; beyond them a list says what is there.
_MOST_DIRTY: Final = 64


@dataclass(frozen=True, slots=True)
class _Listed:
    """The keys of all containers in the latest list, and which list that was."""

    number: int
    keys: frozenset[str]


class Cache:
    """Our containers and volumes by key. ``listed_at`` is when the engine last answered a list.

    ``lists`` counts the lists that were asked for.
    ``sees_volumes`` is False while the engine forbids to list volumes: what was known stays.

    ``clock`` is monotonic, in seconds. ``ownership`` tells ours from foreign ones, of which no key
    ever shows anything. ``claimed_volumes`` maps the names of volumes to the keys that own them,
    whether or not a list shows them.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float],
        *,
        ownership: Ownership,
        claimed_volumes: Mapping[str, str],
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._ownership = ownership
        self._claimed_volumes = claimed_volumes
        self._containers: dict[str, Container] = {}
        self._foreign: dict[str, Container] = {}
        self._by_key: defaultdict[str, dict[str, Container]] = defaultdict(dict)
        self._volumes: dict[str, Volume] = {}
        self._dirty: defaultdict[str, set[str]] = defaultdict(set)
        self._dirty_volumes: defaultdict[str, set[str]] = defaultdict(set)
        self._unsure: set[str] = set()
        self._touched: dict[str, float] = {}
        self._unseen: dict[str, str] = {}
        self._broken_ids: set[str] = set()
        self._broken_volumes: set[str] = set()
        self.sees_volumes = True
        self.listed_at = 0.0
        self._confirmed = -_LIST_SPACING
        self.lists = 0
        self._listed = _Listed(0, frozenset())

    # --- what is known ------------------------------------------------------------------------

    def observed(self, key: str) -> Observed:
        """All that is known under the key."""
        containers = self._by_key.get(key, {})
        volumes = (v for v in self._volumes.values() if v.sandbox == key)
        return Observed(tuple(containers.values()), tuple(volumes))

    def knows(self, key: str) -> bool:
        """Whether nothing under the key waits to be looked at."""
        return not any(key in keys for keys in (self._dirty, self._dirty_volumes, self._unsure))

    def has(self, key: str) -> bool:
        """Whether something bears the key, or may bear it."""
        return any(key in keys for keys in (self._by_key, self._dirty, self._dirty_volumes))

    def unseen(self, key: str) -> str:
        """Return why what is under the key could not be inspected; empty where it could be."""
        return self._unseen.get(key, "")

    def mark_unseen(self, key: str, why: str) -> None:
        """Note why what is under the key cannot be inspected, until an inspection succeeds."""
        self._unseen[key] = why

    def changed(self) -> set[str]:
        """Every key under which something is to be inspected."""
        return {*self._dirty, *self._dirty_volumes, *self._unsure}

    def keys(self) -> set[str]:
        """Every key that something bears, or may bear."""
        containers = {container.sandbox for container in self._containers.values()}
        volumes = {volume.sandbox for volume in self._volumes.values()}
        return {*containers, *volumes, *self._dirty, *self._dirty_volumes}

    def ids(self) -> tuple[set[str], set[str] | None]:
        """The ids of all containers, and the names of all volumes, readable or not.

        None where volumes cannot be seen.
        """
        volumes = {*self._volumes, *self._broken_volumes} if self.sees_volumes else None
        return {*self._containers, *self._broken_ids}, volumes

    def image_ids(self) -> set[str]:
        """The ids of the images of all containers."""
        return {container.image_id for container in self._containers.values()}

    # --- what may have changed ----------------------------------------------------------------

    def touch(self, key: str, container_id: str) -> None:
        """The container is to be inspected before the key's next decision."""
        ids = self._dirty[key]
        if len(ids) < _MOST_DIRTY or container_id in self._containers:
            ids.add(container_id)
        else:
            self.doubt(key)

    def doubt(self, key: str) -> None:
        """A change was asked for and its outcome is unknown: look at everything under the key."""
        self._unsure.add(key)

    def touch_volume(self, name: str) -> str | None:
        """The volume is to be inspected before its key's next decision; gives the key, if known.

        Perhaps it was made again: an event may come late, or once more.
        """
        volume = self._volumes.get(name)
        if volume is None:
            return None
        self._dirty_volumes[volume.sandbox].add(name)
        return volume.sandbox

    def put_volume(self, volume: Volume) -> None:
        """The volume was just made."""
        self._volumes[volume.name] = volume
        self._touched[volume.name] = self._clock()

    def drop_volume(self, name: str) -> None:
        """The volume was just removed."""
        self._volumes.pop(name, None)
        self._touched[name] = self._clock()

    async def refresh(self, key: str) -> None:
        """Inspect what may have changed under the key.

        Raises:
            EngineError: it could not be asked; what was to be inspected still is.
        """
        try:
            if key in self._unsure:
                await self._rediscover(key)
            await _inspect_each(self._dirty, key, self._inspect, self._put)
            await _inspect_each(
                self._dirty_volumes, key, self._engine.inspect_volume, self._replace_volume
            )
        except EngineUnavailable:
            raise
        except EngineError as error:
            self._unseen[key] = str(error)
            raise
        self._unseen.pop(key, None)

    async def _inspect(self, container_id: str) -> tuple[Container, bool] | None:
        """The container, and whether it is ours."""
        container = await self._engine.inspect(container_id)
        return None if container is None else (container, await self._ownership.admit(container))

    async def listing(self) -> Listing:
        """What there is, by the engine's word now.

        Raises:
            EngineError: it could not be asked.
        """
        self.lists += 1
        number = self.lists
        listing = await self._engine.list()
        self.listed_at = self._clock()
        if number > self._listed.number:
            broken = {row.sandbox for row in listing.broken_containers}
            whole = {summary.sandbox for summary in listing.containers}
            self._listed = _Listed(number, frozenset(broken | whole))
        return listing

    def listed(self, key: str, after: int) -> bool | None:
        """Whether the key had a container in the latest list; None: no list came after that one."""
        return key in self._listed.keys if self._listed.number > after else None

    def until_confirmation(self) -> float:
        """Return the seconds until ``confirm`` may be called."""
        return max(self._confirmed + _LIST_SPACING - self._clock(), 0.0)

    async def confirm(self) -> None:
        """Ask for a list only to confirm what is known.

        Raises:
            EngineError: the engine could not be asked.
        """
        self._confirmed = self._clock()
        await self.listing()

    async def _rediscover(self, key: str) -> None:
        listing = await self.listing()
        for summary in listing.containers:
            if summary.sandbox == key:
                self.touch(key, summary.id)
        for volume in filter(None, map(self._ownership.admit_volume, listing.volumes)):
            if volume.sandbox == key:
                self.put_volume(volume)
        if listing.sees_volumes:
            self._dirty_volumes[key].update(self._ownership.volumes_of(key))
        self._unsure.discard(key)

    def _put(self, container_id: str, found: tuple[Container, bool] | None) -> None:
        self._foreign.pop(container_id, None)
        former = self._containers.pop(container_id, None)
        if former is not None:
            self._drop_from_key(former)
        if found is None:
            return
        container, ours = found
        if not ours:
            self._foreign[container.id] = container
            return
        self._containers[container.id] = container
        self._by_key[container.sandbox][container.id] = container

    def _replace_volume(self, name: str, volume: Volume | None) -> None:
        admitted = None if volume is None else self._ownership.admit_volume(volume)
        if admitted is None:
            self.drop_volume(name)
        else:
            self._volumes[name] = admitted

    def _drop_from_key(self, container: Container) -> None:
        siblings = self._by_key[container.sandbox]
        del siblings[container.id]
        if not siblings:
            del self._by_key[container.sandbox]

    # --- everything at once ------------------------------------------------------------------

    def apply(self, listing: Listing, *, everything: bool) -> None:
        """Take a whole list in: what differs from what is known is to be inspected, or all."""
        began = self._clock()
        listed = {summary.id for summary in listing.containers}
        for summary in listing.containers:
            if everything or self._differs(summary):
                self.touch(summary.sandbox, summary.id)
        for container in (*self._containers.values(), *self._foreign.values()):
            if container.id not in listed:
                self.touch(container.sandbox, container.id)
        for row in listing.broken_containers:
            if row.id and row.sandbox:
                self.touch(row.sandbox, row.id)
        self._broken_ids = {row.id for row in listing.broken_containers}
        self._broken_volumes = {row.id for row in listing.broken_volumes}
        self.sees_volumes = listing.sees_volumes
        if listing.sees_volumes:
            self._apply_volumes(listing, began)

    def judge_again(self) -> None:
        """Another daemon was found: what was taken for ours, or for foreign, may not be so."""
        for container in (*self._containers.values(), *self._foreign.values()):
            self.touch(container.sandbox, container.id)
        for volume in self._volumes.values():
            self._dirty_volumes[volume.sandbox].add(volume.name)

    def _differs(self, summary: Summary) -> bool:
        cached = self._containers.get(summary.id) or self._foreign.get(summary.id)
        if cached is None:
            return True
        return (cached.name, cached.phase) != (summary.name, summary.phase)

    def _apply_volumes(self, listing: Listing, began: float) -> None:
        # What this process changed while the list was made is known better than the list knows it.
        recent = {name for name, at in self._touched.items() if at >= began - _LIST_SLACK}
        unsure = recent | self._broken_volumes
        kept = {name: v for name, v in self._volumes.items() if name in unsure}
        admitted = filter(None, map(self._ownership.admit_volume, listing.volumes))
        listed = {v.name: v for v in admitted if v.name not in recent}
        self._volumes = {**listed, **kept}
        # Volumes that were adopted without our labels are in no list.
        for name, sandbox in self._claimed_volumes.items():
            if name not in self._volumes and name not in recent:
                self._dirty_volumes[sandbox].add(name)
        self._touched = {name: self._touched[name] for name in recent}

    async def inspect_all(self) -> list[EngineError]:
        """Inspect what may have changed; what fails is left for its key's own pass."""
        gate = asyncio.Semaphore(_CONCURRENT_INSPECTIONS)
        failed: list[EngineError] = []

        async def inspect(key: str) -> None:
            async with gate:
                try:
                    await self.refresh(key)
                except EngineError as error:
                    failed.append(error)

        async with asyncio.TaskGroup() as group:
            for key in {*self._dirty, *self._dirty_volumes}:
                group.create_task(inspect(key), name=f"inspect {key}")
        return failed


async def _inspect_each(
    dirty: dict[str, set[str]],
    key: str,
    inspect: Callable[[str], Awaitable[T | None]],
    put: Callable[[str, T | None], None],
) -> None:
    """Look at all that is dirty under the key; what could not be looked at still is."""
    while pending := dirty.get(key):
        name = pending.pop()
        try:
            found = await inspect(name)
        except BaseException:
            dirty[key].add(name)
            raise
        put(name, found)
    dirty.pop(key, None)
