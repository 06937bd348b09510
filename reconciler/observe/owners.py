"""Find out which other databases that label objects of this instance are alive, and which are lost.

Each daemon has a marker: a volume named after its instance and its owner id. To test whether
another owner is alive, its marker is removed: a daemon recreates its marker as soon as an event
reports the removal, and a lost database does not. A daemon that adopts the objects of a lost owner
holds that owner's marker too, with its own id in the nonce label, so that only one daemon adopts
them. In steady state this costs no call. docs/adr/0010-ownership.md lists the cases.
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

    from reconciler.core.observed import Volume
    from reconciler.engine.protocol import Engine, Listing
    from reconciler.observe.cache import Cache
    from reconciler.observe.ownership import Ownership
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

# Seconds in which a daemon recreates its marker, after the event of the removal.
ANSWER_WITHIN: Final = 5.0
_POLL: Final = 0.25
# Seconds in which a returning owner makes its marker before the daemon that holds it does.
_HEADSTART: Final = 0.5
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
        # Lost owners whose objects were adopted: this daemon keeps their markers.
        self._held: set[str] = set()
        self._restoring: set[asyncio.Task[None]] = set()

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
        """Cancel the recreation of markers: a marker stands for a live daemon."""
        for task in self._restoring:
            task.cancel()
        if self._restoring:
            await asyncio.wait(self._restoring)

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
        # A restart does not release the markers that this daemon holds.
        mine = {owner for owner, by in listing.holders.items() if by == self._store.owner}
        self._held |= mine & listing.owning
        if listing.holders.get(self._store.owner) != "":
            if not await self._mark():
                return listing
            # Each daemon lists after it made its marker, so daemons that start at once see each
            # other.
            listing = await again()
        unknown = self._unknown(listing)
        # Nobody tested a marker that this daemon holds while it was stopped.
        marked = {
            owner
            for owner in unknown & listing.holders.keys()
            if listing.holders[owner] != self._store.owner
        }
        # An owner whose marker could not be removed is tested again after the next list.
        untested = marked - {owner for owner in marked if await self._remove_marker(owner)}
        alive = await self._recreated(marked - untested)
        for owner in alive:
            self._add_rival(owner)
        adopted = listing.owning - self._ownership.rivals
        lost = {
            owner
            for owner in unknown - untested - alive
            if owner not in adopted or await self._hold(owner)
        }
        if lost:
            self._settled |= lost
            self._ownership.note_lost(lost)
        # Held markers that are missing are recreated; those of owners without objects are removed.
        for owner in self._held & listing.owning - listing.holders.keys():
            await self._hold(owner)
        if listing.broken_containers or listing.broken_volumes:
            return listing
        for owner, holder in listing.holders.items():
            if holder == self._store.owner and owner not in listing.owning:
                self._held.discard(owner)
                self._settled.discard(owner)
                await self._remove_marker(owner)
        return listing

    def handle(self, name: str, what: str) -> bool:
        """Handle the event of a marker; return whether it revealed a new rival."""
        owner = name.removeprefix(naming.marker_prefix(self._instance))
        own = owner == self._store.owner
        if owner not in self._held and not own:
            return what == "create" and self._add_rival(owner)

        async def prove_alive() -> None:
            # If this fails, the next list shows that the marker is missing.
            with suppress(EngineError):
                if own:
                    await self._restore()
                else:
                    await asyncio.sleep(_HEADSTART)
                    await self._hold(owner)

        if owner in self._held or what == "destroy":
            task = asyncio.create_task(
                supervise("owner marker", prove_alive, self._recorder), name="owner marker"
            )
            self._restoring.add(task)
            task.add_done_callback(self._restoring.discard)
        return False

    def _unknown(self, listing: Listing) -> set[str]:
        return listing.owners - {"", self._store.owner} - self._settled

    async def _mark(self) -> bool:
        """Create our marker; return False if the engine refuses, or another daemon holds it."""
        for _ in range(2):
            marker = await self._create_marker(self._store.owner, "")
            if marker is None:
                return False
            if not marker.nonce:
                return True
            # The daemon that holds it waits a moment before it recreates it.
            if not await self._remove_marker(self._store.owner):
                return False
        return False

    async def _hold(self, owner: str) -> bool:
        """Keep a lost owner's marker; return False if another daemon keeps it."""
        self._held.add(owner)
        marker = await self._create_marker(owner, self._store.owner)
        if marker is not None and marker.nonce == self._store.owner:
            return True
        self._held.discard(owner)
        if marker is not None:
            self._add_rival(owner)
        return False

    async def _create_marker(self, owner: str, holder: str) -> Volume | None:
        """Create an owner's marker, or return the existing one; None if the engine refuses."""
        name = naming.marker_name(self._instance, owner)
        labels = {naming.LABEL_INSTANCE: self._instance, naming.LABEL_OWNER: owner}
        if holder:
            labels[naming.LABEL_NONCE] = holder
        made: list[Volume] = []

        async def create() -> None:
            made.append(await self._engine.create_volume(name, labels))

        return made[0] if await self._try(create) else None

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
        marker = await self._engine.inspect_volume(self._marker)
        if marker is None or marker.nonce:
            await self._mark()

    def _add_rival(self, owner: str) -> bool:
        """Report another daemon and classify all objects again; return whether it is new."""
        if owner in self._rivals:
            return False
        self._rivals.add(owner)
        self._settled.add(owner)
        self._held.discard(owner)
        self._ownership.note_rival(owner)
        self._cache.mark_all_dirty()
        self._recorder.log(
            events.OwnerConflict(
                instance=self._instance, owner=self._store.owner, other=owner, hint=HINT
            )
        )
        return True
