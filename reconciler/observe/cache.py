"""Cache of the engine's objects by key, with dirty tracking.

A container in the cache comes from one inspection of it. Events and lists only mark objects as
dirty; the key's pass inspects them, so that the inspection is serial with the key's actions.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from reconciler.core.errors import EngineError, EngineUnavailable
from reconciler.core.observed import Observed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from reconciler.core.observed import Container, Volume
    from reconciler.engine.protocol import Engine, Listing
    from reconciler.observe.ownership import Ownership

T = TypeVar("T")

# Seconds that a list may lag behind a change that this process made to a volume.
_LIST_SLACK: Final = 30.0
_CONCURRENT_INSPECTIONS: Final = 16
# Seconds between two lists that confirm deletions: many deletions share one.
_LIST_SPACING: Final = 1.0
# Dirty containers of one key; beyond that number, a list replaces their ids.
_MOST_DIRTY: Final = 64


@dataclass(frozen=True, slots=True)
class _Listed:
    """The keys of all containers in the latest list, and the number of that list."""

    number: int
    keys: frozenset[str]


class Cache:
    """Our containers and volumes by key. Foreign ones appear under no key.

    Args:
        engine: The engine to list and inspect.
        clock: Monotonic seconds.
        ownership: Classifies objects as ours or foreign.
        claimed_volumes: The key that owns each volume name, in a list or not.

    ``lists`` counts the requested lists. ``listed_at`` is when the engine last answered one.
    ``sees_volumes`` is False while the engine forbids listing volumes; known ones stay cached.
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
        self._to_list: set[str] = set()
        self._changed_at: dict[str, float] = {}
        self._inspection_errors: dict[str, str] = {}
        self._broken_ids: set[str] = set()
        self._broken_volumes: set[str] = set()
        self.sees_volumes = True
        self.listed_at = 0.0
        self._confirmed = -_LIST_SPACING
        self.lists = 0
        self._listed = _Listed(0, frozenset())

    # --- queries --------------------------------------------------------------------------------

    def observed(self, key: str) -> Observed:
        """Return the cached objects under the key."""
        containers = self._by_key.get(key, {})
        volumes = (v for v in self._volumes.values() if v.sandbox == key)
        return Observed(tuple(containers.values()), tuple(volumes))

    def is_clean(self, key: str) -> bool:
        """Whether nothing under the key is dirty."""
        return not any(key in keys for keys in (self._dirty, self._dirty_volumes, self._to_list))

    def has(self, key: str) -> bool:
        """Whether a container of the key is cached, or an object of it is dirty."""
        return any(key in keys for keys in (self._by_key, self._dirty, self._dirty_volumes))

    def inspection_error(self, key: str) -> str:
        """Return why an object under the key could not be inspected; empty if all could be."""
        return self._inspection_errors.get(key, "")

    def note_inspection_error(self, key: str, why: str) -> None:
        """Note why an object under the key cannot be inspected, until an inspection succeeds."""
        self._inspection_errors[key] = why

    def dirty_keys(self) -> set[str]:
        """Return every key with a dirty object."""
        return {*self._dirty, *self._dirty_volumes, *self._to_list}

    def keys(self) -> set[str]:
        """Return every key with a cached or dirty object."""
        containers = {container.sandbox for container in self._containers.values()}
        volumes = {volume.sandbox for volume in self._volumes.values()}
        return {*containers, *volumes, *self._dirty, *self._dirty_volumes}

    def ids(self) -> tuple[set[str], set[str] | None]:
        """Return the ids of all containers and the names of all volumes, unreadable ones included.

        The names are None while volumes cannot be listed.
        """
        volumes = {*self._volumes, *self._broken_volumes} if self.sees_volumes else None
        return {*self._containers, *self._broken_ids}, volumes

    def image_ids(self) -> set[str]:
        """Return the image ids of all containers."""
        return {container.image_id for container in self._containers.values()}

    # --- marking --------------------------------------------------------------------------------

    def mark_dirty(self, key: str, container_id: str) -> None:
        """Have the container inspected before the key's next decision."""
        ids = self._dirty[key]
        if len(ids) < _MOST_DIRTY or container_id in self._containers:
            ids.add(container_id)
        else:
            self.request_listing(key)

    def mark_key_dirty(self, key: str) -> None:
        """Have the key's known containers inspected before its next decision."""
        for container_id in self._by_key.get(key, {}):
            self.mark_dirty(key, container_id)

    def request_listing(self, key: str) -> None:
        """Have everything under the key listed and inspected: the outcome of a call is unknown."""
        self._to_list.add(key)

    def mark_volume_dirty(self, name: str) -> str | None:
        """Have the volume inspected before its key's next decision; return the key, if known.

        Its removal is not assumed: an event may be late or repeated, and the volume recreated.
        """
        volume = self._volumes.get(name)
        if volume is None:
            return None
        self._dirty_volumes[volume.sandbox].add(name)
        return volume.sandbox

    def put_volume(self, volume: Volume) -> None:
        """Add a volume that was just created."""
        self._volumes[volume.name] = volume
        self._changed_at[volume.name] = self._clock()

    def drop_volume(self, name: str) -> None:
        """Drop a volume that was just removed."""
        self._volumes.pop(name, None)
        self._changed_at[name] = self._clock()

    async def refresh(self, key: str) -> None:
        """Inspect the dirty objects under the key, and store all answers at once.

        A container that was stopped never shows without the one that replaces it.

        Raises:
            EngineError: an inspection failed; its object stays dirty.
        """

        async def inspect(container_id: str) -> tuple[Container, bool] | None:
            """Inspect a container; return it and whether it is ours."""
            found = await self._engine.inspect(container_id)
            return None if found is None else (found, await self._ownership.admit(found))

        containers: dict[str, tuple[Container, bool] | None] = {}
        volumes: dict[str, Volume | None] = {}
        try:
            if key in self._to_list:
                await self._list_key(key)
            await _inspect_each(self._dirty, key, inspect, containers)
            await _inspect_each(self._dirty_volumes, key, self._engine.inspect_volume, volumes)
        except EngineUnavailable:
            raise
        except EngineError as error:
            self._inspection_errors[key] = str(error)
            raise
        finally:
            for container_id, container in containers.items():
                self._replace_container(container_id, container)
            for name, volume in volumes.items():
                if volume is not None and (admitted := self._ownership.admit_volume(volume)):
                    self._volumes[name] = admitted
                else:
                    self.drop_volume(name)
        self._inspection_errors.pop(key, None)

    async def listing(self) -> Listing:
        """List everything from the engine.

        Raises:
            EngineError: the engine could not be asked.
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
        """Whether the latest list has a container of the key; None: there is none since ``after``.

        ``after`` is a value of ``lists``.
        """
        return key in self._listed.keys if self._listed.number > after else None

    def until_confirmation(self) -> float:
        """Return the seconds until ``confirm`` may be called."""
        return max(self._confirmed + _LIST_SPACING - self._clock(), 0.0)

    async def confirm(self) -> None:
        """List once more, only to confirm deletions.

        Raises:
            EngineError: the engine could not be asked.
        """
        self._confirmed = self._clock()
        await self.listing()

    async def _list_key(self, key: str) -> None:
        listing = await self.listing()
        for summary in listing.containers:
            if summary.sandbox == key:
                self.mark_dirty(key, summary.id)
        for volume in filter(None, map(self._ownership.admit_volume, listing.volumes)):
            if volume.sandbox == key:
                self.put_volume(volume)
        if listing.sees_volumes:
            self._dirty_volumes[key].update(self._ownership.volumes_of(key))
        self._to_list.discard(key)

    def _replace_container(self, container_id: str, found: tuple[Container, bool] | None) -> None:
        self._foreign.pop(container_id, None)
        former = self._containers.pop(container_id, None)
        if former is not None:
            siblings = self._by_key[former.sandbox]
            del siblings[former.id]
            if not siblings:
                del self._by_key[former.sandbox]
        if found is None:
            return
        container, ours = found
        if not ours:
            self._foreign[container.id] = container
            return
        self._containers[container.id] = container
        self._by_key[container.sandbox][container.id] = container

    # --- everything at once ---------------------------------------------------------------------

    def apply(self, listing: Listing, *, everything: bool) -> None:
        """Apply a full list: mark what differs from the cache as dirty, or everything."""
        began = self._clock()
        listed = {summary.id for summary in listing.containers}
        for summary in listing.containers:
            cached = self._containers.get(summary.id) or self._foreign.get(summary.id)
            same = cached and (cached.name, cached.phase) == (summary.name, summary.phase)
            if everything or not same:
                self.mark_dirty(summary.sandbox, summary.id)
        for container in (*self._containers.values(), *self._foreign.values()):
            if container.id not in listed:
                self.mark_dirty(container.sandbox, container.id)
        for row in listing.broken_containers:
            if row.id and row.sandbox:
                self.mark_dirty(row.sandbox, row.id)
        self._broken_ids = {row.id for row in listing.broken_containers}
        self._broken_volumes = {row.id for row in listing.broken_volumes}
        self.sees_volumes = listing.sees_volumes
        if not listing.sees_volumes:
            return
        # The list may be older than what this process changed meanwhile.
        recent = {name for name, at in self._changed_at.items() if at >= began - _LIST_SLACK}
        unsure = recent | self._broken_volumes
        kept = {name: v for name, v in self._volumes.items() if name in unsure}
        admitted = filter(None, map(self._ownership.admit_volume, listing.volumes))
        self._volumes = {**{v.name: v for v in admitted if v.name not in recent}, **kept}
        # Adopted volumes without our labels are in no list.
        for name, sandbox in self._claimed_volumes.items():
            if name not in self._volumes and name not in recent:
                self._dirty_volumes[sandbox].add(name)
        self._changed_at = {name: self._changed_at[name] for name in recent}

    def mark_all_dirty(self) -> None:
        """Have every object inspected, and classified as ours or foreign again."""
        for container in (*self._containers.values(), *self._foreign.values()):
            self.mark_dirty(container.sandbox, container.id)
        for volume in self._volumes.values():
            self._dirty_volumes[volume.sandbox].add(volume.name)

    async def inspect_all(self) -> list[EngineError]:
        """Inspect all dirty objects; return the errors. Failed ones stay dirty for their pass."""
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
    found: dict[str, T | None],
) -> None:
    """Inspect each dirty object of the key; one that fails stays dirty."""
    while pending := dirty.get(key):
        name = pending.pop()
        try:
            found[name] = await inspect(name)
        except BaseException:
            dirty[key].add(name)
            raise
    dirty.pop(key, None)
