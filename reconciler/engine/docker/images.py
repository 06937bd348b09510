"""Images of one engine: which are there, pulls and removals."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import Forbidden, NotFound, PullFailed, Refused
from reconciler.engine.docker import decode as codec
from reconciler.engine.docker import requests
from reconciler.engine.docker.auth import auth_header
from reconciler.engine.docker.errors import on_image_removal, on_pull_of, understood
from reconciler.engine.docker.pull import LONGEST_PULL_LINE, Pull, registry_of, split_reference
from reconciler.engine.docker.stream import Lines, lines_of
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from reconciler.engine.docker.client import Client
    from reconciler.engine.protocol import Image, PullProgress

# Seconds without a line of progress. While it unpacks a layer, an engine with containerd's image
# store says nothing: 10 GB onto a disk that takes 6 MB/s are half an hour. Where the network
# breaks, so does the connection: this ends only a pull that the engine itself has forgotten.
_SILENCE: Final = 1800.0
# Of an engine that names no other.
_DEFAULT_INDEX: Final = "https://index.docker.io/v1/"


class Images:
    """``read_timeout`` is how long a question may take, ``pull_timeout`` a whole pull."""

    def __init__(self, client: Client, read_timeout: float, pull_timeout: float) -> None:
        self._client = client
        self._read_timeout = read_timeout
        self._pull_timeout = pull_timeout
        self._files = BoundedCalls()

    async def has(self, image: str) -> bool:
        """Whether a create would find the image."""
        return await self.id_of(image) is not None

    async def id_of(self, image: str) -> str | None:
        """The id of the image that a create would find. A name that cannot be one is not there."""
        try:
            answer = await self._client.call(
                requests.get(f"{requests.image(image)}/json"), self._read_timeout
            )
        except (NotFound, Refused):
            return None
        with understood(f"image {image}"):
            return codec.identifier(answer)

    async def labels(self, image_id: str) -> dict[str, str]:
        """The labels that a container of the image inherits.

        Raises:
            NotFound: the image is not there.
        """
        request = requests.get(f"{requests.image(image_id)}/json")
        answer = await self._client.call(request, self._read_timeout)
        with understood("an image"):
            return dict((answer.get("Config") or {}).get("Labels") or {})

    async def all(self) -> tuple[Image, ...]:
        """All images but the layers of a build, and those that the engine cannot describe."""
        rows = await self._client.call(requests.images(), self._read_timeout)
        with understood("its images"):
            return codec.rows(rows, codec.image)[0]

    async def remove(self, image_id: str, seconds: float) -> None:
        """Remove one that nothing uses. Nothing is forced: the engine knows best who uses it.

        Raises:
            Busy: something does, or names it a second time.
        """
        # The parents of an image that somebody built are that person's.
        request = requests.delete(requests.image(image_id), noprune="1")
        with suppress(NotFound):
            await self._client.call(request, seconds, on_image_removal)

    async def pull(self, image: str, progress: Callable[[PullProgress], None]) -> None:
        """Pull; cancelled, the engine ends the pull too.

        Raises:
            PullFailed: it cannot be had, or not in time.
        """
        try:
            async with asyncio.timeout(self._pull_timeout):
                await self._pull(image, progress)
        except TimeoutError as error:
            raise PullFailed(f"{image}: not pulled within {self._pull_timeout:g} s") from error
        if not await self.has(image):
            raise PullFailed(f"{image}: the pull ended, and the image is not there: pull it again")

    async def _pull(self, image: str, progress: Callable[[PullProgress], None]) -> None:
        repository, tag = split_reference(image)
        try:
            headers, trouble = await self._credentials(image), None
        except PullFailed as error:
            headers, trouble = {}, error
        request, pull = requests.pull(repository, tag, headers), Pull(image)
        try:
            async with self._client.stream(request, _SILENCE, on_pull_of(image)) as chunks:
                lines = lines_of(_with_a_pulse(image, chunks), Lines(LONGEST_PULL_LINE))
                async for line in lines:
                    progress(pull.feed(line))
        except PullFailed as error:
            if trouble is None:
                raise
            # Many images need no credentials, so only a pull that fails shows that they lack.
            raise PullFailed(f"{error}; it was tried without credentials: {trouble}") from error

    async def _credentials(self, image: str) -> dict[str, str]:
        try:
            about = await self._client.call(requests.get("info"), self._read_timeout)
        except Forbidden:
            about = {}
        with understood("itself"):
            index = codec.index_server(about) or _DEFAULT_INDEX
        registry = registry_of(image)
        return await auth_header(registry, index, os.environ, self._read_timeout, self._files)


async def _with_a_pulse(image: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(_SILENCE):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise PullFailed(
                f"{image}: no progress for {_SILENCE:g} s: see whether the registry answers"
            ) from error
        if chunk is None:
            return
        yield chunk
