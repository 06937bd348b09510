"""Observed state: a list at the start, events after, a relist on each reconnect and on a period."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final

from reconciler.core import naming
from reconciler.core.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Forbidden,
    Unreadable,
)
from reconciler.core.priority import Priority
from reconciler.engine.protocol import EventKind
from reconciler.progress import activity, waiting
from reconciler.telemetry import events
from reconciler.telemetry.supervision import supervise

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from reconciler.engine.protocol import Engine, EngineEvent, EngineInfo
    from reconciler.observe.cache import Cache
    from reconciler.observe.owners import Owners
    from reconciler.telemetry.recorder import Recorder

_RECONNECT_FIRST: Final = 0.1
_RECONNECT_LONGEST: Final = 5.0
# A connection that held this long was a good one.
_STABLE: Final = 5.0
_INFO_PATIENCE: Final = 5.0
# Without events: seconds between two lists, and between two attempts to subscribe.
_POLL: Final = 5.0
_RESUBSCRIBE: Final = 60.0
# Broken rows of one list that are logged.
_MOST_BROKEN: Final = 100
# Seconds between two lists that events ask for.
_RELIST_SPACING: Final = 1.0


class Informer:
    """Keeps a cache true, and says whose turn it is.

    ``wanted`` names the keys that are looked at again with every list, though nothing bears them.
    ``on_removed`` is called when the engine has removed a container. ``connections`` counts the
    full observations that followed a new connection. ``info`` is what the engine last said about
    itself.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        cache: Cache,
        owners: Owners,
        enqueue: Callable[[str, Priority], None],
        wanted: Callable[[], Iterable[str]],
        is_wanted: Callable[[str], bool],
        on_first_sync: Callable[[], None],
        on_removed: Callable[[], None],
        clock: Callable[[], float],
        resync_interval: float,
        recorder: Recorder,
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._owners = owners
        self._enqueue = enqueue
        self._wanted = wanted
        self._is_wanted = is_wanted
        self._on_first_sync = on_first_sync
        self._on_removed = on_removed
        self._clock = clock
        self._resync_interval = resync_interval
        self._recorder = recorder
        self.ever_synced = False
        self.synced = asyncio.Event()
        self.complete = False
        self.error = "not asked yet"
        self.connections = 0
        self.info: EngineInfo | None = None
        self._reported: type[events.Event] | None = None
        self._relist_asked = asyncio.Event()
        self._broken: set[str] = set()

    async def sync_once(self) -> None:
        """One full observation, without events.

        Raises:
            EngineError: the engine could not be asked.
        """
        await self._list(everything=True)
        for error in await self._cache.inspect_all():
            if not isinstance(error, Unreadable):
                raise error
        self._become_synced()

    async def _list(self, *, everything: bool) -> None:
        listing = await self._owners.settle(await self._cache.listing(), self._cache.listing)
        self._cache.apply(listing, everything=everything)
        rows = (*listing.broken_containers, *listing.broken_volumes)
        for row in rows[:_MOST_BROKEN]:
            if row.id not in self._broken:
                self._recorder.log(events.EngineUnreadable(object=row.id, error=row.error))
        self._broken = {row.id for row in rows}

    async def _sync(self) -> None:
        info = None if self._reported is events.EngineConnected else await self._info()
        self.info = info or self.info
        await self._list(everything=True)
        if not self.ever_synced:
            # What exists is adopted before anything is made. Later, each key's own pass inspects.
            for error in await self._cache.inspect_all():
                if not _is_about_one(error):
                    raise error
        if self._reported is not events.EngineConnected:
            self._report_connected(info)
        self._become_synced()

    async def run(self) -> None:
        """Stay connected to the engine until cancelled."""
        with activity("informer"):
            await self._keep_connecting()

    async def _keep_connecting(self) -> None:
        delay = _RECONNECT_FIRST
        while True:
            began = self._clock()
            try:
                await self._stay_connected()
            except EngineError as error:
                self._lose(events.EngineLost(error=str(error)))
                self._reported = events.EngineLost
            finally:
                held = self.synced.is_set() and self._clock() - began >= _STABLE
                self.complete = False
                self.synced.clear()
            if held and self._reported is events.EngineConnected:
                self._recorder.resolve(events.EngineStreamLost)
            delay = _RECONNECT_FIRST if held else min(delay * 2, _RECONNECT_LONGEST)
            await asyncio.sleep(delay)

    async def _stay_connected(self) -> None:
        # Subscribe first, list after: what changes in between is told by an event.
        async with AsyncExitStack() as stack:
            try:
                stream = await stack.enter_async_context(self._engine.events())
            except Forbidden:
                await self._sync()
                await self._poll()
                return
            # Events are heard during the first list too: another daemon may ask for our marker.
            hearing = asyncio.create_task(self._hear_all(stream), name="events")
            tasks = {hearing}
            try:
                await self._sync()
                tasks.add(
                    asyncio.create_task(
                        supervise("relist", self._keep_relisting, self._recorder), name="relist"
                    )
                )
                # Not awaited itself: its end would be taken for ours, and ours for its.
                with waiting(math.inf):
                    await asyncio.wait({hearing})
                hearing.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        why = "it ended the event stream, and is asked again"
        self._lose(events.EngineStreamLost(error=why))

    async def _poll(self) -> None:
        """Do without events: list every few seconds, until it is time to subscribe again.

        Raises:
            EngineError: the engine cannot be asked.
        """
        until = self._clock() + _RESUBSCRIBE
        while self._clock() < until:
            pause = min(_POLL, self._resync_interval)
            with waiting(pause):
                await asyncio.sleep(pause)
            await self._list(everything=False)
            for key in self._cache.changed():
                self._enqueue(key, Priority.EVENT)

    def _lose(self, event: events.EngineLost | events.EngineStreamLost) -> None:
        self.error = event.error
        self._recorder.complain(event)

    async def _info(self) -> EngineInfo | None:
        """Ask which engine it is; None where it does not answer soon."""
        try:
            async with asyncio.timeout(_INFO_PATIENCE):
                return await self._engine.info()
        except (EngineError, TimeoutError):
            return None

    def _report_connected(self, info: EngineInfo | None) -> None:
        self._reported = events.EngineConnected
        self._recorder.resolve(events.EngineLost)
        self._recorder.log(
            events.EngineConnected(
                engine=info.name if info else None,
                version=info.version if info else None,
                api_version=info.api_version if info else None,
            )
        )

    async def _hear_all(self, stream: AsyncIterator[EngineEvent]) -> None:
        async for event in stream:
            self._hear(event)

    def _hear(self, event: EngineEvent) -> None:
        if event.kind is EventKind.CONTAINER and event.what == "destroy":
            self._on_removed()
        match event.kind:
            case EventKind.CONTAINER if self._knows(event.sandbox):
                self._cache.touch(event.sandbox, event.id)
                self._enqueue(event.sandbox, Priority.EVENT)
            case EventKind.CONTAINER:
                # Names in events are anybody's: only a list makes a key of one.
                self._relist_asked.set()
            case EventKind.VOLUME:
                self._hear_volume(event)

    def _knows(self, key: str) -> bool:
        return self._is_wanted(key) or self._cache.has(key)

    def _hear_volume(self, event: EngineEvent) -> None:
        if event.id.startswith(naming.MARKER_PREFIX):
            self._owners.hear(event.id, event.what)
            return
        key = self._cache.touch_volume(event.id) if event.what == "destroy" else None
        if key is not None:
            self._enqueue(key, Priority.EVENT)

    async def _keep_relisting(self) -> None:
        with activity("relist"):
            await self._relist_when_due()

    async def _relist_when_due(self) -> None:
        due = self._clock() + self._resync_interval
        while True:
            await self._until_relist(due)
            began = self._clock()
            is_due = began >= due
            if is_due:
                due = began + self._resync_interval
            try:
                await self._relist(everyone=is_due)
            except EngineError as error:
                # A list that fails says nothing about what is there. Events still come, so work
                # continues, but nothing is collected.
                self.complete = False
                self._report_no_list(error, self._clock() - began)
            except BaseException:
                self.complete = False
                raise
            else:
                self._recorder.resolve(events.EngineSlow, about="list")
                self._recorder.resolve(events.EngineListFailed)

    def _report_no_list(self, error: EngineError, seconds: float) -> None:
        if isinstance(error, EngineTimeout):
            self._recorder.complain(
                events.EngineSlow(
                    call="list containers and volumes", seconds=round(seconds, 1), error=str(error)
                ),
                about="list",
            )
        else:
            self._recorder.complain(events.EngineListFailed(error=str(error)))

    async def _until_relist(self, due: float) -> None:
        """Wait until a list is due, or an event asked for one a moment after the last."""
        with waiting(due - self._clock()), suppress(TimeoutError):
            await asyncio.sleep(min(_RELIST_SPACING, due - self._clock()))
            async with asyncio.timeout(due - self._clock()):
                await self._relist_asked.wait()

    async def _relist(self, *, everyone: bool) -> None:
        self._relist_asked.clear()
        await self._list(everything=False)
        self.complete = True
        if everyone:
            self.enqueue_all()
        else:
            for key in self._cache.changed():
                self._enqueue(key, Priority.EVENT)

    def enqueue_all(self) -> None:
        """Have every key looked at."""
        for key in {*self._cache.keys(), *self._wanted()}:
            self._enqueue(key, Priority.RESYNC)

    def _become_synced(self) -> None:
        if not self.ever_synced:
            self.ever_synced = True
            self._on_first_sync()
        self.connections += 1
        self.complete, self.error = True, ""
        self.enqueue_all()
        self.synced.set()


def _is_about_one(error: EngineError) -> bool:
    """Whether it speaks of one container, and not of the engine."""
    return isinstance(error, EngineTimeout) or not isinstance(error, EngineUnavailable)
