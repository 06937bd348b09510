"""Find out which other databases that label objects of this instance are alive, and which are lost.

Each daemon has a marker: a volume named after its instance and its owner id. To test whether
another owner is alive, its marker is removed: a daemon recreates its marker as soon as an event
reports the removal, and a lost database does not. In steady state this costs no call.
docs/adr/0010-ownership.md lists the cases.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from reconciler.core import naming
from reconciler.core.errors import EngineError, EngineUnavailable
from reconciler.telemetry import events
from reconciler.telemetry.supervision import supervise

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from reconciler.engine.protocol import Engine, Listing
    from reconciler.observe.cache import Cache
    from reconciler.observe.ownership import Ownership
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

# Seconds in which a daemon recreates its marker, after the event of the removal.
ANSWER_WITHIN: Final = 5.0
_POLL: Final = 0.25
HINT: Final = "give each daemon its own `instance`, or stop one of them"


class Owners:
    """Decides, for each list of the engine's objects, which owners are lost and which are rivals.

    A rival is the owner id of another daemon that is alive and uses the same instance.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        *,
        cache: Cache,
        ownership: Ownership,
        instance: str,
        recorder: Recorder,
    ) -> None:
        self._engine = engine
        self._store = store
        self._cache = cache
        self._ownership = ownership
        self._instance = instance
        self._recorder = recorder
        self._marker = naming.marker_name(instance, store.owner)
        self._settled: set[str] = set()
        self._rivals: set[str] = set()
        self._restoring: asyncio.Task[None] | None = None

    @property
    def conflict(self) -> str:
        """Which daemons use this instance too, and what to do; empty if none does."""
        if not self._rivals:
            return ""
        return (
            f"another daemon uses instance {self._instance!r} on this engine "
            f"(owner {', '.join(sorted(self._rivals))}): {HINT}"
        )

    async def close(self) -> None:
        """Cancel the recreation of our marker: a marker stands for a live daemon."""
        if self._restoring is not None:
            self._restoring.cancel()
            await asyncio.wait({self._restoring})

    async def settle(self, listing: Listing, again: Callable[[], Awaitable[Listing]]) -> Listing:
        """Decide about each unknown owner in the list; return the list to work with.

        Args:
            listing: What the engine has.
            again: Asks the engine for another list.

        Raises:
            EngineUnavailable: the engine could not be asked.
        """
        if self._store.readonly:
            # A dry run changes nothing on the engine, so it cannot test who is alive.
            self._ownership.note_lost(self._unknown(listing))
            return listing
        if self._store.owner not in listing.markers:
            if not await self._mark():
                return listing
            # Each daemon lists after it made its marker, so daemons that start at once see each
            # other.
            listing = await again()
        unknown = self._unknown(listing)
        if not unknown:
            return listing
        marked = unknown & listing.markers
        # An owner whose marker could not be removed is tested again after the next list.
        untested = marked - {owner for owner in marked if await self._remove_marker(owner)}
        alive = await self._recreated(marked - untested)
        decided = unknown - untested
        self._settled |= decided
        self._ownership.note_lost(decided - alive)
        for owner in alive:
            self._add_rival(owner)
        return listing

    def handle(self, name: str, what: str) -> bool:
        """Handle the event of a marker; return whether it revealed a new rival."""
        owner = name.removeprefix(naming.marker_prefix(self._instance))
        if owner != self._store.owner:
            return what == "create" and self._add_rival(owner)
        if what == "destroy":
            self._restoring = asyncio.create_task(
                supervise("owner marker", self._prove_alive, self._recorder), name="owner marker"
            )
        return False

    async def _prove_alive(self) -> None:
        # If this fails, the next list shows that the marker is missing.
        with suppress(EngineError):
            await self._restore()

    def _unknown(self, listing: Listing) -> set[str]:
        return listing.owners - {"", self._store.owner} - self._settled

    async def _mark(self) -> bool:
        """Create our marker; return False if the engine refuses."""
        labels = {naming.LABEL_INSTANCE: self._instance, naming.LABEL_OWNER: self._store.owner}
        return await self._try(lambda: self._engine.create_volume(self._marker, labels))

    async def _remove_marker(self, owner: str) -> bool:
        """Remove an owner's marker; return False if the engine refuses."""
        name = naming.marker_name(self._instance, owner)
        return await self._try(lambda: self._engine.remove_volume(name))

    async def _try(self, change: Callable[[], Awaitable[object]]) -> bool:
        try:
            await change()
        except EngineUnavailable:
            raise
        except EngineError as error:
            self._recorder.complain(events.OwnerUnmarked(error=str(error)))
            return False
        return True

    async def _recreated(self, owners: set[str]) -> set[str]:
        """Return the owners whose marker is recreated after its removal."""
        alive: set[str] = set()
        for _ in range(round(ANSWER_WITHIN / _POLL)):
            if alive == owners:
                break
            await asyncio.sleep(_POLL)
            await self._restore()
            for owner in owners - alive:
                marker = naming.marker_name(self._instance, owner)
                if await self._engine.inspect_volume(marker) is not None:
                    alive.add(owner)
        return alive

    async def _restore(self) -> None:
        """Recreate our marker if another daemon removed it to test whether we are alive."""
        if await self._engine.inspect_volume(self._marker) is None:
            await self._mark()

    def _add_rival(self, owner: str) -> bool:
        """Report another daemon and classify all objects again; return whether it is new."""
        if owner in self._rivals:
            return False
        self._rivals.add(owner)
        self._settled.add(owner)
        self._ownership.note_rival(owner)
        self._cache.mark_all_dirty()
        self._recorder.log(
            events.OwnerConflict(
                instance=self._instance, owner=self._store.owner, other=owner, hint=HINT
            )
        )
        return True
