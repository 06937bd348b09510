"""Finds out whether the databases that an engine's objects name are lost, or have a daemon.

Each daemon has a marker: a volume named after its instance and its owner id. To learn whether
another owner is alive, its marker is removed: a daemon makes its own again as soon as it hears that
it is gone, and a database that is lost does not. In steady state this costs no call.
docs/adr/0010-ownership.md holds the cases.
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
    from reconciler.observe.ownership import Ownership
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

# Seconds for a daemon to make its marker again. It hears of the removal by an event.
ANSWER_WITHIN: Final = 5.0
_POLL: Final = 0.25
HINT: Final = "give each daemon its own `instance`, or stop one of them"


class Owners:
    """Settles, for each list of the engine's objects, which owners are lost and which are alive.

    ``on_rival`` is called when a rival is found, so that what was taken for ours is judged again.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        *,
        ownership: Ownership,
        instance: str,
        on_rival: Callable[[], None],
        recorder: Recorder,
    ) -> None:
        self._engine = engine
        self._store = store
        self._ownership = ownership
        self._instance = instance
        self._on_rival = on_rival
        self._recorder = recorder
        self._settled: set[str] = set()
        self._met: set[str] = set()
        self._restoring: asyncio.Task[None] | None = None

    @property
    def conflict(self) -> str:
        """Which other daemon works with this instance, for a person; empty where none does."""
        if not self._met:
            return ""
        return (
            f"another daemon uses instance {self._instance!r} on this engine "
            f"(owner {', '.join(sorted(self._met))}): {HINT}"
        )

    async def close(self) -> None:
        """End a marker's restoring: one that is made later would stand for a live daemon."""
        if self._restoring is not None:
            self._restoring.cancel()
            await asyncio.wait({self._restoring})

    async def settle(self, listing: Listing, again: Callable[[], Awaitable[Listing]]) -> Listing:
        """Decide about each owner that was not met before; returns the list to go by.

        Args:
            listing: What the engine has.
            again: Asks the engine for another list.

        Raises:
            EngineUnavailable: the engine could not be asked.
        """
        if self._store.readonly:
            # A rehearsal changes nothing on the engine, so it cannot ask.
            self._ownership.note_lost(self._strangers(listing))
            return listing
        if self._store.owner not in listing.markers:
            if not await self._mark():
                return listing
            # Daemons that start at once see each other: each lists after it made its marker.
            listing = await again()
        strangers = self._strangers(listing)
        if not strangers:
            return listing
        asked = strangers & listing.markers
        removed = {owner for owner in asked if await self._remove_marker(owner)}
        alive = await self._answering(removed)
        # An owner whose marker could not be removed is asked again after the next list.
        decided = strangers - (asked - removed)
        self._settled |= decided
        self._ownership.note_lost(decided - alive)
        for owner in alive:
            self._meet(owner)
        return listing

    def _strangers(self, listing: Listing) -> set[str]:
        return listing.owners - {"", self._store.owner} - self._settled

    async def _mark(self) -> bool:
        """Make our marker; False where the engine does not let us."""
        name = naming.marker_name(self._instance, self._store.owner)
        labels = {naming.LABEL_INSTANCE: self._instance, naming.LABEL_OWNER: self._store.owner}
        try:
            await self._engine.create_volume(name, labels)
        except EngineUnavailable:
            raise
        except EngineError as error:
            self._recorder.complain(events.OwnerUnmarked(error=str(error)))
            return False
        return True

    async def _remove_marker(self, owner: str) -> bool:
        """Remove an owner's marker, which a live daemon makes again; False where that failed."""
        try:
            await self._engine.remove_volume(naming.marker_name(self._instance, owner))
        except EngineUnavailable:
            raise
        except EngineError as error:
            self._recorder.complain(events.OwnerUnmarked(error=str(error)))
            return False
        return True

    async def _answering(self, owners: set[str]) -> set[str]:
        """Those of the owners whose marker comes back after it was removed."""
        markers = {owner: naming.marker_name(self._instance, owner) for owner in owners}
        alive: set[str] = set()
        for _ in range(round(ANSWER_WITHIN / _POLL)):
            if alive == owners:
                break
            await asyncio.sleep(_POLL)
            await self._restore()
            for owner in owners - alive:
                if await self._engine.inspect_volume(markers[owner]) is not None:
                    alive.add(owner)
        return alive

    async def _restore(self) -> None:
        """Make our marker again where another daemon removed it to ask whether we are alive."""
        name = naming.marker_name(self._instance, self._store.owner)
        if await self._engine.inspect_volume(name) is None:
            await self._mark()

    def hear(self, name: str, what: str) -> None:
        """A marker was made or removed, as an event says."""
        owner = name.removeprefix(naming.marker_prefix(self._instance))
        if owner != self._store.owner:
            if what == "create":
                self._meet(owner)
        elif what == "destroy":
            self._restoring = asyncio.create_task(
                supervise("owner marker", self._answer, self._recorder), name="owner marker"
            )

    async def _answer(self) -> None:
        # Where this fails, the next list shows that the marker is missing.
        with suppress(EngineError):
            await self._restore()

    def _meet(self, owner: str) -> None:
        if owner in self._met:
            return
        self._met.add(owner)
        self._settled.add(owner)
        self._ownership.note_rival(owner)
        self._recorder.log(
            events.OwnerConflict(
                instance=self._instance, owner=self._store.owner, other=owner, hint=HINT
            )
        )
        self._on_rival()
