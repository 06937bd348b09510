"""The images that this instance brought to the host: which they are, and which of them may go."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from reconciler.core.disk_pressure import PulledImage, images_to_collect, renewed
from reconciler.core.errors import Busy, EngineError, EngineUnavailable
from reconciler.telemetry import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from reconciler.engine.protocol import Engine, Image
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

_PULLS: Final = "pulls"


class Images:
    """Notes what a pull brought, durably, and collects it when asked to.

    ``in_use`` gives the ids of the images of all our containers; None while it is not certain that
    these, and the records, are all there are: then nothing is collected. ``min_age`` is in seconds
    since an image was last in use.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        store: Store,
        in_use: Callable[[], set[str] | None],
        pinned: Sequence[str],
        min_age: float,
        recorder: Recorder,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._store = store
        self._in_use = in_use
        self._pinned = pinned
        self._min_age = min_age
        self._recorder = recorder
        self._clock = clock
        self._under_way: set[str] = set()

    # --- what is ours -------------------------------------------------------------------------

    @asynccontextmanager
    async def pulling(self, image: str) -> AsyncIterator[None]:
        """A pull of the image is done in here; what was not on the host before is ours after.

        An engine that does not say leaves the image to be taken for somebody else's. What came of a
        pull whose end nobody saw is found out by ``settle``, after a kill too.
        """
        await self._settle(image)
        before = await self._listed()
        if before is None:
            yield
            return
        self._put_pull(image, sorted(before))
        self._under_way.add(image)
        try:
            yield
        except EngineUnavailable:
            raise
        except EngineError:
            self._put_pull(image, None)
            raise
        finally:
            self._under_way.discard(image)
        await self._settle(image)

    async def settle(self) -> None:
        """Find out what came of the pulls whose end nobody saw."""
        for image in self._pulls().keys() - self._under_way:
            await self._settle(image)

    async def _settle(self, image: str) -> None:
        before = self._pulls().get(image)
        if before is None:
            return
        try:
            id_ = await self._engine.image_id(image)
        except EngineError:
            return
        if id_ is not None and (id_ not in before or id_ in self._store.images):
            self._note(image, id_)
        self._put_pull(image, None)

    def _note(self, image: str, id_: str) -> None:
        now, known = self._clock(), self._store.images.get(id_)
        self._store.put_image(id_, PulledImage(image, known.pulled_at if known else now, now))

    def _pulls(self) -> dict[str, list[str]]:
        """The ids of all images that the host had before each pull, by what was pulled."""
        pulls: dict[str, list[str]] = json.loads(self._store.fact(_PULLS) or "{}")
        return pulls

    def _put_pull(self, image: str, before: list[str] | None) -> None:
        others = {name: ids for name, ids in self._pulls().items() if name != image}
        pulls = others if before is None else {**others, image: before}
        self._store.put_fact(_PULLS, json.dumps(pulls) if pulls else None)

    async def _listed(self) -> Mapping[str, Image] | None:
        """All images of the host by id. What we knew of one that is gone is forgotten."""
        known = set(self._store.images)
        try:
            listed = {image.id: image for image in await self._engine.images()}
        except EngineError:
            return None
        for id_ in known - listed.keys():
            self._store.drop_image(id_)
        return listed

    def renew(self) -> None:
        """Note which are in use now."""
        fresh = renewed(self._store.images, self._in_use() or (), self._clock())
        for id_, image in fresh.items():
            self._store.put_image(id_, image)

    def idle(self) -> list[tuple[PulledImage, float]]:
        """Those that nothing has or names, and when at the earliest each may go."""
        in_use, named = self._in_use(), self._named()
        if in_use is None:
            return []
        return [
            (image, image.used_at + self._min_age)
            for id_, image in self._store.images.items()
            if id_ not in in_use and image.reference not in named
        ]

    # --- what may go --------------------------------------------------------------------------

    async def collect(self, enough: Callable[[], Awaitable[bool]]) -> bool:
        """Remove those that may go, one at a time, until there is enough room or none is left.

        False: it is not certain what may go, so nothing went.
        """
        try:
            listed = await self._listed()
            kept = None if listed is None else await self._kept(listed)
            if listed is None or kept is None:
                return False
            await self._remove_but(kept, listed, enough)
        except EngineError as error:
            self._complain("", error)
            return isinstance(error, EngineUnavailable)
        return True

    async def _remove_but(
        self, kept: set[str], listed: Mapping[str, Image], enough: Callable[[], Awaitable[bool]]
    ) -> None:
        named = self._named()
        # What is pulled from now on is not among them.
        known = {id_: image for id_, image in self._store.images.items() if id_ in listed}
        for id_ in images_to_collect(known, kept=kept, now=self._clock(), min_age=self._min_age):
            # A record that came meanwhile may want the next one.
            if self._named() != named:
                return
            if await self._remove(listed[id_], known[id_].reference) and await enough():
                return

    def _named(self) -> set[str]:
        return {record.spec.image for record in self._store.records.values()} | {*self._pinned}

    async def _kept(self, listed: Mapping[str, Image]) -> set[str] | None:
        """The engine itself says which image a name leads to: names can be written in many ways."""
        named = self._named()
        ids = {await self._engine.image_id(name) for name in sorted(named)}
        in_use = self._in_use()
        if in_use is None or named != self._named():
            return None
        elsewhere = {image.id for image in listed.values() if image.in_use}
        return {*(id_ for id_ in ids if id_), *in_use, *elsewhere}

    async def _remove(self, image: Image, reference: str) -> bool:
        try:
            await self._engine.remove_image(image.id)
        except Busy:
            # A container that is not ours, another image or another name needs it.
            return False
        except EngineUnavailable:
            raise
        except EngineError as error:
            self._complain(reference, error)
            return False
        self._store.drop_image(image.id)
        self._recorder.resolve(events.ImageCollectFailed, about=reference)
        self._recorder.log(
            events.ImageCollected(image=reference, image_id=image.id, bytes=image.size)
        )
        return True

    def _complain(self, image: str, error: EngineError) -> None:
        self._recorder.complain(
            events.ImageCollectFailed(image=image, error=str(error)), about=image
        )
