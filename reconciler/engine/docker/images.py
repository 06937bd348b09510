"""List, pull and remove the images of one engine."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import Forbidden, NotFound, PullFailed, Refused
from reconciler.engine.docker import decode, requests
from reconciler.engine.docker.auth import auth_header
from reconciler.engine.docker.errors import decode_errors, on_image_removal, on_pull_of
from reconciler.engine.docker.pull import LONGEST_PULL_LINE, Pull, registry_of, split_reference
from reconciler.engine.docker.stream import Lines, lines_of
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from reconciler.engine.docker.client import Client
    from reconciler.engine.protocol import Image, PullProgress

# Seconds without a line of progress. With containerd's image store, an engine reports nothing while
# it unpacks a layer: 10 GB at 6 MB/s take half an hour. A broken network also breaks the
# connection, so this limit only ends a pull that the engine itself has dropped.
_SILENCE: Final = 1800.0
# For an engine that names no other.
_DEFAULT_INDEX: Final = "https://index.docker.io/v1/"


class Images:
    """The images of one engine; the timeouts are for one read and for a whole pull, in seconds."""

    def __init__(self, client: Client, read_timeout: float, pull_timeout: float) -> None:
        self._client = client
        self._read_timeout = read_timeout
        self._pull_timeout = pull_timeout
        self._files = BoundedCalls()

    async def has(self, image: str) -> bool:
        """Return whether a create would find the image."""
        return await self.id_of(image) is not None

    async def id_of(self, image: str) -> str | None:
        """Return the id of the image that a create would find; None also for a malformed name."""
        try:
            answer = await self._client.call(
                requests.get(f"{requests.image(image)}/json"), self._read_timeout
            )
        except (NotFound, Refused):
            return None
        with decode_errors(f"image {image}"):
            return decode.identifier(answer)

    async def labels(self, image_id: str) -> dict[str, str]:
        """Return the labels that a container inherits from the image.

        Raises:
            NotFound: the image is missing.
        """
        request = requests.get(f"{requests.image(image_id)}/json")
        answer = await self._client.call(request, self._read_timeout)
        with decode_errors("an image"):
            return dict((answer.get("Config") or {}).get("Labels") or {})

    async def all(self) -> tuple[Image, ...]:
        """List all images except intermediate layers, and those that cannot be decoded."""
        rows = await self._client.call(requests.images(), self._read_timeout)
        with decode_errors("its images"):
            return decode.rows(rows, decode.image)[0]

    async def remove(self, image_id: str, seconds: float) -> None:
        """Remove an unused image, without force: the engine knows best whether it is used.

        Raises:
            Busy: it is in use, or has more than one name.
        """
        # noprune: never delete parent images; they may belong to a user.
        request = requests.delete(requests.image(image_id), noprune="1")
        with suppress(NotFound):
            await self._client.call(request, seconds, on_image_removal)

    async def pull(self, image: str, progress: Callable[[PullProgress], None]) -> None:
        """Pull an image. Cancelling this call also ends the pull on the engine.

        Raises:
            PullFailed: the registry does not provide it, or not in time.
        """
        try:
            async with asyncio.timeout(self._pull_timeout):
                await self._pull(image, progress)
        except TimeoutError as error:
            raise PullFailed(
                f"{image}: the pull did not end within {self._pull_timeout:g} s: check the "
                "registry and the network, or increase `pull_timeout`"
            ) from error
        if not await self.has(image):
            raise PullFailed(f"{image}: the pull ended, but the image is missing: pull it again")

    async def _pull(self, image: str, progress: Callable[[PullProgress], None]) -> None:
        """Pull an image without a limit for the whole; without credentials if they fail."""

        async def limited(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            while True:
                try:
                    async with asyncio.timeout(_SILENCE):
                        chunk = await anext(chunks, None)
                except TimeoutError as error:
                    raise PullFailed(
                        f"{image}: no progress for {_SILENCE:g} s: check whether the registry "
                        "answers"
                    ) from error
                if chunk is None:
                    return
                yield chunk

        repository, tag = split_reference(image)
        headers: dict[str, str] = {}
        trouble: PullFailed | None = None
        try:
            headers = await self._credentials(image)
        except PullFailed as error:
            trouble = error
        request, pull = requests.pull(repository, tag, headers), Pull(image)
        try:
            async with self._client.stream(request, _SILENCE, on_pull_of(image)) as chunks:
                async for line in lines_of(limited(chunks), Lines(LONGEST_PULL_LINE)):
                    progress(pull.feed(line))
        except PullFailed as error:
            if trouble is None:
                raise
            # Many images need no credentials, so only a failed pull shows that they are missing.
            raise PullFailed(f"{error}; pulled without credentials: {trouble}") from error

    async def _credentials(self, image: str) -> dict[str, str]:
        """Return the header with the credentials for the image's registry."""
        try:
            info = await self._client.call(requests.get("info"), self._read_timeout)
        except Forbidden:
            info = {}
        with decode_errors("itself"):
            index = decode.index_server(info) or _DEFAULT_INDEX
        registry = registry_of(image)
        return await auth_header(registry, index, os.environ, self._read_timeout, self._files)
