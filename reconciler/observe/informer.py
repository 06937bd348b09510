"""Keep the cache current: a full list first, then events, and a relist on a timer or reconnect."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final

from reconciler.core import naming
from reconciler.core.errors import (
    EngineError,
    EngineTimeout,
    Forbidden,
    Unreadable,
    is_engine_lost,
)
from reconciler.core.priority import Priority
from reconciler.engine.protocol import EventKind
from reconciler.liveness import activity, waiting
from reconciler.telemetry import events
from reconciler.telemetry.supervision import supervise

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.engine.protocol import Engine, EngineEvent, EngineInfo
    from reconciler.observe.cache import Cache
    from reconciler.observe.owners import Owners
    from reconciler.telemetry.recorder import Recorder

_RECONNECT_FIRST: Final = 0.1
_RECONNECT_LONGEST: Final = 5.0
# Seconds after which a connection counts as stable, and the next reconnect is quick again.
_STABLE: Final = 5.0
_INFO_TIMEOUT: Final = 5.0
# Without an event stream: seconds between two lists, and between two attempts to subscribe.
_POLL: Final = 5.0
_RESUBSCRIBE: Final = 60.0
# Unreadable objects that are logged for each list.
_MOST_BROKEN: Final = 100
# Seconds between two lists that events request.
_RELIST_SPACING: Final = 1.0


class Informer:
    """Marks what changed in the cache, and enqueues the keys.

    Args:
        engine: The engine to list and to subscribe to.
        cache: What is known of the engine's objects.
        owners: Decides which other databases are alive, for each list.
        enqueue: Adds one key to the queue.
        enqueue_all: Adds every key to the queue.
        is_wanted: Whether a record, or the deletion of one, concerns the key.
        on_first_sync: Called when everything was inspected for the first time.
        on_removed: Called when the engine has removed a container.
        clock: Monotonic seconds.
        resync_interval: Seconds between two lists that enqueue every key.
        recorder: The log.

    ``synced`` is set while connected. ``complete`` is False after a list failed: absence proves
    nothing then. ``error`` is why it is not synced. ``connections`` counts the full observations
    that followed a new connection. ``info`` is what the engine last reported about itself.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        cache: Cache,
        owners: Owners,
        enqueue: Callable[[str, Priority], None],
        enqueue_all: Callable[[], None],
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
        self._enqueue_all = enqueue_all
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
        self._relist_requested = asyncio.Event()
        self._broken: set[str] = set()

    async def sync_once(self) -> None:
        """Do one full observation, without events.

        Raises:
            EngineError: the engine could not be asked.
        """
        await self._list(everything=True)
        for error in await self._cache.inspect_all():
            if not isinstance(error, Unreadable):
                raise error
        self._mark_synced()

    async def run(self) -> None:
        """Stay connected to the engine until cancelled."""
        delay = _RECONNECT_FIRST
        with activity("informer"):
            while True:
                began = self._clock()
                try:
                    await self._stay_connected()
                except EngineError as error:
                    self._report_lost(events.EngineLost(error=str(error)))
                    self._reported = events.EngineLost
                finally:
                    stable = self.synced.is_set() and self._clock() - began >= _STABLE
                    self.complete = False
                    self.synced.clear()
                if stable and self._reported is events.EngineConnected:
                    self._recorder.resolve(events.EngineStreamLost)
                delay = _RECONNECT_FIRST if stable else min(delay * 2, _RECONNECT_LONGEST)
                await asyncio.sleep(delay)

    def _report_lost(self, event: events.EngineLost | events.EngineStreamLost) -> None:
        self.error = event.error
        self._recorder.complain(event)

    async def _stay_connected(self) -> None:
        """Subscribe, list, and follow events until the stream ends or may be tried again."""
        # Subscribed first, so that an event reports what changes during the list.
        async with AsyncExitStack() as stack:
            try:
                stream = await stack.enter_async_context(self._engine.events())
            except Forbidden:
                await self._sync()
                # List every few seconds, until it is time to subscribe to events again.
                until = self._clock() + _RESUBSCRIBE
                while self._clock() < until:
                    pause = min(_POLL, self._resync_interval)
                    with waiting(pause):
                        await asyncio.sleep(pause)
                    await self._list(everything=False)
                    self._enqueue_changed()
                return

            async def follow() -> None:
                async for event in stream:
                    self.handle(event)

            # Followed during the first list too: another daemon may test whether we are alive.
            following = asyncio.create_task(follow(), name="events")
            tasks = {following}
            try:
                await self._sync()
                relist = supervise("relist", self._keep_relisting, self._recorder)
                tasks.add(asyncio.create_task(relist, name="relist"))
                # Not awaited directly: its cancellation would look like ours, and ours like its.
                with waiting(math.inf):
                    await asyncio.wait({following})
                following.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        self._report_lost(
            events.EngineStreamLost(error="the engine closed the event stream; reconnecting")
        )

    # --- list -----------------------------------------------------------------------------------

    async def _sync(self) -> None:
        info = None
        if self._reported is not events.EngineConnected:
            # Who the engine is matters less than the list: it may be left out.
            with suppress(EngineError, TimeoutError):
                async with asyncio.timeout(_INFO_TIMEOUT):
                    info = await self._engine.info()
        self.info = info or self.info
        await self._list(everything=True)
        if not self.ever_synced:
            # What exists is adopted before anything is created. Later, each key's pass inspects.
            for error in await self._cache.inspect_all():
                if is_engine_lost(error):
                    raise error
        if self._reported is not events.EngineConnected:
            self._reported = events.EngineConnected
            self._recorder.resolve(events.EngineLost)
            self._recorder.log(
                events.EngineConnected(
                    engine=info.name if info else None,
                    version=info.version if info else None,
                    api_version=info.api_version if info else None,
                )
            )
        self._mark_synced()

    def _mark_synced(self) -> None:
        if not self.ever_synced:
            self.ever_synced = True
            self._on_first_sync()
        self.connections += 1
        self.complete, self.error = True, ""
        self._enqueue_all()
        self.synced.set()

    async def _list(self, *, everything: bool) -> None:
        listing = await self._owners.settle(await self._cache.listing(), self._cache.listing)
        self._cache.apply(listing, everything=everything)
        rows = (*listing.broken_containers, *listing.broken_volumes)
        for row in rows[:_MOST_BROKEN]:
            if row.id not in self._broken:
                self._recorder.log(events.EngineUnreadable(object=row.id, error=row.error))
        self._broken = {row.id for row in rows}

    def _enqueue_changed(self) -> None:
        for key in self._cache.dirty_keys():
            self._enqueue(key, Priority.EVENT)

    async def _keep_relisting(self) -> None:
        """List when the resync is due, or when an event requested it a moment after the last."""
        with activity("relist"):
            due = self._clock() + self._resync_interval
            while True:
                left = due - self._clock()
                with waiting(left), suppress(TimeoutError):
                    await asyncio.sleep(min(_RELIST_SPACING, left))
                    async with asyncio.timeout(due - self._clock()):
                        await self._relist_requested.wait()
                began = self._clock()
                resync = began >= due
                if resync:
                    due = began + self._resync_interval
                self._relist_requested.clear()
                try:
                    await self._list(everything=False)
                except EngineError as error:
                    # A list that fails proves nothing about what exists. Events still arrive, so
                    # work continues, but nothing is collected.
                    self.complete = False
                    if isinstance(error, EngineTimeout):
                        self._recorder.complain(
                            events.EngineSlow(
                                call="list containers and volumes",
                                seconds=round(self._clock() - began, 1),
                                error=str(error),
                            ),
                            about="list",
                        )
                    else:
                        self._recorder.complain(events.EngineListFailed(error=str(error)))
                    continue
                except BaseException:
                    self.complete = False
                    raise
                self.complete = True
                if resync:
                    self._enqueue_all()
                else:
                    self._enqueue_changed()
                self._recorder.resolve(events.EngineSlow, about="list")
                self._recorder.resolve(events.EngineListFailed)

    # --- events ---------------------------------------------------------------------------------

    def handle(self, event: EngineEvent) -> None:
        """Mark what the event is about, and enqueue its key."""
        if event.kind is EventKind.CONTAINER:
            if event.what == "destroy":
                self._on_removed()
            if self._is_wanted(event.sandbox) or self._cache.has(event.sandbox):
                self._cache.mark_dirty(event.sandbox, event.id)
                self._enqueue(event.sandbox, Priority.EVENT)
            else:
                # Anyone can put a name into an event: only a list makes a key of it.
                self._relist_requested.set()
        elif event.kind is EventKind.VOLUME:
            if event.id.startswith(naming.MARKER_PREFIX):
                # The engine sends past events again at the start: a marker that was created before
                # the first list is in that list, and tested by it.
                past = event.what == "create" and not self.ever_synced
                if not past and self._owners.handle(event.id, event.what):
                    self._enqueue_all()
            elif event.what == "destroy" and (key := self._cache.mark_volume_dirty(event.id)):
                self._enqueue(key, Priority.EVENT)
