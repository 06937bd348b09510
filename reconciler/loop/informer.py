"""Observed state: a list at the start, events after, a relist on every reconnect and on a period.

What is cached of a container came from one inspection of it. Events and lists only say what to
inspect again, and whose turn it is; the inspection itself happens in the key's own pass, so it is
serial with everything else that is done for the key.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import EngineError, EngineTimeout, EngineUnavailable
from reconciler.core.model import Observed
from reconciler.engine.protocol import EventKind
from reconciler.loop.queue import Priority
from reconciler.service.events import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reconciler.core.model import Container, Volume
    from reconciler.engine.protocol import Engine, EngineEvent, Listing, Summary
    from reconciler.loop.reporter import Reporter

_RECONNECT_FIRST: Final = 0.1
_RECONNECT_LONGEST: Final = 5.0
# A connection that held this long was a good one.
_STABLE: Final = 5.0
# Seconds that a list may lag behind what this process did to a volume.
_LIST_SLACK: Final = 30.0
_CONCURRENT_INSPECTIONS: Final = 16


class Informer:
    """The cache of one engine, and the tasks that keep it true.

    ``wanted`` names the keys that are looked at again with every list, though nothing bears them.
    ``connections`` counts the full observations that followed a new connection; ``listed_at`` is
    when the engine last answered a list, by ``clock``.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        enqueue: Callable[[str, Priority], None],
        wanted: Callable[[], Iterable[str]],
        on_first_sync: Callable[[], None],
        clock: Callable[[], float],
        resync_interval: float,
        reporter: Reporter,
    ) -> None:
        self._engine = engine
        self._enqueue = enqueue
        self._wanted = wanted
        self._on_first_sync = on_first_sync
        self._clock = clock
        self._resync_interval = resync_interval
        self._reporter = reporter
        self._containers: dict[str, Container] = {}
        self._by_key: defaultdict[str, dict[str, Container]] = defaultdict(dict)
        self._volumes: dict[str, Volume] = {}
        self._dirty: defaultdict[str, set[str]] = defaultdict(set)
        self._unsure: set[str] = set()
        self._touched: dict[str, float] = {}
        self.ever_synced = False
        self.synced = asyncio.Event()
        self.complete = False
        self.error = "not asked yet"
        self.connections = 0
        self.listed_at = 0.0

    # --- what is known ------------------------------------------------------------------------

    def observed(self, key: str) -> Observed:
        """All that is known under the key."""
        containers = self._by_key.get(key, {})
        volumes = (v for v in self._volumes.values() if v.sandbox == key)
        return Observed(tuple(containers.values()), tuple(volumes))

    def knows(self, key: str) -> bool:
        """Whether nothing under the key waits to be looked at."""
        return key not in self._dirty and key not in self._unsure

    def keys(self) -> set[str]:
        """Every key that something bears."""
        containers = {container.sandbox for container in self._containers.values()}
        return containers | {volume.sandbox for volume in self._volumes.values()}

    def ids(self) -> tuple[set[str], set[str]]:
        """The ids of all containers, and the names of all volumes."""
        return set(self._containers), set(self._volumes)

    def image_ids(self) -> set[str]:
        """The ids of the images of all containers."""
        return {container.image_id for container in self._containers.values()}

    # --- what may have changed ----------------------------------------------------------------

    def touch(self, key: str, container_id: str) -> None:
        """The container is to be inspected before the key's next decision."""
        self._dirty[key].add(container_id)

    def doubt(self, key: str) -> None:
        """A change was asked for and its outcome is unknown: look at everything under the key."""
        self._unsure.add(key)

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
        if key in self._unsure:
            await self._rediscover(key)
        while pending := self._dirty.get(key):
            container_id = pending.pop()
            try:
                container = await self._engine.inspect(container_id)
            except BaseException:
                self.touch(key, container_id)
                raise
            self._put(container_id, container)
        self._dirty.pop(key, None)

    async def _list(self) -> Listing:
        listing = await self._engine.list()
        self.listed_at = self._clock()
        return listing

    async def _rediscover(self, key: str) -> None:
        listing = await self._list()
        for summary in listing.containers:
            if summary.sandbox == key:
                self.touch(key, summary.id)
        for volume in listing.volumes:
            if volume.sandbox == key:
                self.put_volume(volume)
        self._unsure.discard(key)

    def _put(self, container_id: str, container: Container | None) -> None:
        former = self._containers.pop(container_id, None)
        if former is not None:
            self._drop_from_key(former)
        if container is not None:
            self._containers[container.id] = container
            self._by_key[container.sandbox][container.id] = container

    def _drop_from_key(self, container: Container) -> None:
        siblings = self._by_key[container.sandbox]
        del siblings[container.id]
        if not siblings:
            del self._by_key[container.sandbox]

    # --- the tasks ----------------------------------------------------------------------------

    async def sync_once(self) -> None:
        """One full observation, without events.

        Raises:
            EngineError: the engine could not be asked.
        """
        self._apply(await self._list(), everything=True)
        for error in await self._inspect_all():
            raise error
        self._become_synced()

    async def _sync(self) -> None:
        self._apply(await self._list(), everything=True)
        if not self.ever_synced:
            # What exists is adopted before anything is made. Later, each key's own pass inspects.
            for error in await self._inspect_all():
                if not _is_about_one(error):
                    raise error
        self._become_synced()

    async def run(self) -> None:
        """Stay in touch with the engine, for ever."""
        delay = _RECONNECT_FIRST
        while True:
            began = self._clock()
            try:
                await self._stay_connected()
            except EngineError as error:
                self._lose(Event.ENGINE_LOST, str(error))
            held = self.synced.is_set() and self._clock() - began >= _STABLE
            self.complete = False
            self.synced.clear()
            delay = _RECONNECT_FIRST if held else min(delay * 2, _RECONNECT_LONGEST)
            await asyncio.sleep(delay)

    async def _stay_connected(self) -> None:
        # Subscribe first, list after: what changes in between is told by an event.
        async with self._engine.events() as events:
            await self._sync()
            await self._say_connected()
            relisting = asyncio.create_task(self._relist_for_ever(), name="relist")
            try:
                async for event in events:
                    self._hear(event)
            finally:
                relisting.cancel()
                # Not awaited itself: its end would be taken for ours, and ours for its.
                await asyncio.wait({relisting})
        self._lose(Event.ENGINE_STREAM_LOST, "it ended the event stream, and is asked again")

    def _lose(self, event: Event, why: str) -> None:
        self.error = why
        self._reporter.complain(event, error=why)

    async def _say_connected(self) -> None:
        try:
            info = await self._engine.info()
        except EngineError:
            return
        self._reporter.complain(
            Event.ENGINE_CONNECTED,
            engine=info.name,
            version=info.version,
            api_version=info.api_version,
        )

    def _hear(self, event: EngineEvent) -> None:
        match event.kind:
            case EventKind.CONTAINER:
                self.touch(event.sandbox, event.id)
                self._enqueue(event.sandbox, Priority.EVENT)
            case EventKind.VOLUME:
                self._hear_volume(event)

    def _hear_volume(self, event: EngineEvent) -> None:
        volume = self._volumes.get(event.id)
        if event.what == "destroy" and volume is not None:
            self.drop_volume(event.id)
            self._enqueue(volume.sandbox, Priority.EVENT)

    async def _relist_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._resync_interval)
            try:
                await self._relist()
            except EngineTimeout as error:
                # A list that hangs says nothing about what is there: events still come, so work
                # goes on, but nothing is taken for garbage.
                self.complete = False
                self._reporter.complain(Event.ENGINE_SLOW, call="list", error=str(error))
            except EngineError as error:
                self.complete = False
                self._reporter.complain(Event.ENGINE_LOST, error=str(error))

    async def _relist(self) -> None:
        self._apply(await self._list(), everything=False)
        self.complete = True
        self.enqueue_all()

    def enqueue_all(self) -> None:
        """Have every key looked at."""
        for key in {*self.keys(), *self._dirty, *self._wanted()}:
            self._enqueue(key, Priority.RESYNC)

    def _apply(self, listing: Listing, *, everything: bool) -> None:
        began = self._clock()
        listed = {summary.id for summary in listing.containers}
        for summary in listing.containers:
            if everything or self._differs(summary):
                self.touch(summary.sandbox, summary.id)
        for container in self._containers.values():
            if container.id not in listed:
                self.touch(container.sandbox, container.id)
        self._apply_volumes(listing, began)

    def _differs(self, summary: Summary) -> bool:
        cached = self._containers.get(summary.id)
        if cached is None:
            return True
        return (cached.name, cached.phase) != (summary.name, summary.phase)

    def _apply_volumes(self, listing: Listing, began: float) -> None:
        # What this process changed while the list was made is known better than the list knows it.
        recent = {name for name, at in self._touched.items() if at >= began - _LIST_SLACK}
        kept = {name: v for name, v in self._volumes.items() if name in recent}
        listed = {v.name: v for v in listing.volumes if v.name not in recent}
        self._volumes = {**listed, **kept}
        self._touched = {name: self._touched[name] for name in recent}

    async def _inspect_all(self) -> list[EngineError]:
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
            for key in list(self._dirty):
                group.create_task(inspect(key), name=f"inspect {key}")
        return failed

    def _become_synced(self) -> None:
        if not self.ever_synced:
            self.ever_synced = True
            self._on_first_sync()
        self.connections += 1
        self.complete, self.error = True, ""
        self._reporter.resolve(Event.ENGINE_LOST)
        self.enqueue_all()
        self.synced.set()


def _is_about_one(error: EngineError) -> bool:
    """Whether it speaks of one container, and not of the engine."""
    return isinstance(error, EngineTimeout) or not isinstance(error, EngineUnavailable)
