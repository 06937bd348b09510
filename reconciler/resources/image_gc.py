"""Track the images that this instance pulled, and remove those that are unused."""

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


class ImageCollector:
    """Remembers which images pulls added to the host, and removes them on request.

    Args:
        in_use: Returns the image ids of all our containers; None while containers or records are
            not completely known, so that nothing may be removed.
        pinned: References of images that are never removed.
        min_age: Seconds since an image was last used, after which it may be removed.
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
        self._pulling: set[str] = set()

    # --- pulled images ------------------------------------------------------------------------

    @asynccontextmanager
    async def pulling(self, image: str) -> AsyncIterator[None]:
        """Wrap a pull: an image that was not on the host before is ours afterwards.

        If the engine does not answer before the pull, the image counts as not ours. If it does not
        answer after the pull, or the daemon is killed, ``resolve_pulls`` finds the result later.
        """
        await self._resolve_pull(image)
        before = await self._listed()
        if before is None:
            yield
            return
        self._put_pull(image, sorted(before))
        self._pulling.add(image)
        try:
            yield
        except EngineUnavailable:
            raise
        except EngineError:
            self._put_pull(image, None)
            raise
        finally:
            self._pulling.discard(image)
        await self._resolve_pull(image)

    async def resolve_pulls(self) -> None:
        """Find the results of pulls whose end this daemon did not see."""
        for image in self._pulls().keys() - self._pulling:
            await self._resolve_pull(image)

    async def _resolve_pull(self, image: str) -> None:
        before = self._pulls().get(image)
        if before is None:
            return
        try:
            id_ = await self._engine.image_id(image)
        except EngineError:
            return
        if id_ is not None and (id_ not in before or id_ in self._store.images):
            now, known = self._clock(), self._store.images.get(id_)
            self._store.put_image(id_, PulledImage(image, known.pulled_at if known else now, now))
        self._put_pull(image, None)

    def _pulls(self) -> dict[str, list[str]]:
        """Return the image ids that the host had before each unresolved pull, by reference."""
        pulls: dict[str, list[str]] = json.loads(self._store.fact(_PULLS) or "{}")
        return pulls

    def _put_pull(self, image: str, before: list[str] | None) -> None:
        others = {name: ids for name, ids in self._pulls().items() if name != image}
        pulls = others if before is None else {**others, image: before}
        self._store.put_fact(_PULLS, json.dumps(pulls) if pulls else None)

    async def _listed(self) -> Mapping[str, Image] | None:
        """List the host's images by id, and forget those of ours that are gone."""
        known = set(self._store.images)
        try:
            listed = {image.id: image for image in await self._engine.images()}
        except EngineError:
            return None
        for id_ in known - listed.keys():
            self._store.drop_image(id_)
        return listed

    def mark_used(self) -> None:
        """Record which images are in use now."""
        fresh = renewed(self._store.images, self._in_use() or (), self._clock())
        for id_, image in fresh.items():
            self._store.put_image(id_, image)

    def unused(self) -> list[tuple[PulledImage, float]]:
        """Return the images that no container or record uses, and when each may be removed."""
        in_use, named = self._in_use(), self._named()
        if in_use is None:
            return []
        return [
            (image, image.used_at + self._min_age)
            for id_, image in self._store.images.items()
            if id_ not in in_use and image.reference not in named
        ]

    # --- removal ------------------------------------------------------------------------------

    async def collect(self, enough: Callable[[], Awaitable[bool]]) -> bool:
        """Remove unused images, one at a time, until ``enough`` or none is left.

        Return False if it is not known which are unused; nothing was removed then.
        """
        try:
            listed = await self._listed()
            kept = None if listed is None else await self._kept(listed)
            if listed is None or kept is None:
                return False
            named = self._named()
            # Images that are pulled from now on are not candidates.
            known = {id_: image for id_, image in self._store.images.items() if id_ in listed}
            candidates = images_to_collect(
                known, kept=kept, now=self._clock(), min_age=self._min_age
            )
            for id_ in candidates:
                # A record that was added meanwhile may need the next one.
                if self._named() != named:
                    break
                if await self._remove(listed[id_], known[id_].reference) and await enough():
                    break
        except EngineError as error:
            self._complain("", error)
            return isinstance(error, EngineUnavailable)
        return True

    def _named(self) -> set[str]:
        return {record.spec.image for record in self._store.records.values()} | {*self._pinned}

    async def _kept(self, listed: Mapping[str, Image]) -> set[str] | None:
        """Return the ids to keep. The engine resolves names, which have several spellings."""
        named = self._named()
        ids = {await self._engine.image_id(name) for name in sorted(named)}
        in_use = self._in_use()
        if in_use is None or named != self._named():
            return None
        elsewhere = {image.id for image in listed.values() if image.in_use}
        return {*(id_ for id_ in ids if id_), *in_use, *elsewhere}

    async def _remove(self, image: Image, reference: str) -> bool:
        """Remove one image; False if it is in use or the engine refuses."""
        try:
            await self._engine.remove_image(image.id)
        except Busy:
            # Another container, image or name uses it.
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
