"""Parse image references and the progress of a pull. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from reconciler.core.errors import PullFailed, Unreadable
from reconciler.engine.docker import decode
from reconciler.engine.docker.errors import cut, decode_errors
from reconciler.engine.docker.stream import parse_json
from reconciler.engine.protocol import PullProgress

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_PULL_LINE: Final = 1 << 20
_MOST_LAYERS: Final = 512
_MOST_BYTES: Final = 1 << 63
_ID: Final = re.compile(r"(sha256:)?[0-9a-f]{64}")
_DONE: Final = frozenset({"Pull complete", "Already exists"})
_UNDER_WAY: Final = frozenset(
    {
        "Pulling fs layer",
        "Waiting",
        "Downloading",
        "Verifying Checksum",
        "Download complete",
        "Extracting",
    }
)


def split_reference(image: str) -> tuple[str, str]:
    """Split an image's name into repository and tag or digest; the default tag is ``latest``.

    Without a tag, the engine would pull all of them.

    Raises:
        PullFailed: the name is an image id, which no registry knows.
    """
    if _ID.fullmatch(image):
        raise PullFailed(
            f"{image} is an image id and not on this engine: load the image, or use its name"
        )
    name, _, digest = image.partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, "latest"
    return repository, digest or tag


def registry_of(image: str) -> str:
    """Return the registry's host, with its port; empty for the engine's default registry."""
    first, slash, _ = image.partition("/")
    names_a_host = slash and ("." in first or ":" in first or first == "localhost")
    return first if names_a_host else ""


class Pull:
    """Computes the progress of one pull from the lines of its stream."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._done: set[str] = set()
        self._layers: set[str] = set()
        self._bytes: dict[str, tuple[int, int]] = {}

    def feed(self, line: bytes) -> PullProgress:
        """Return the progress after one line. A line that cannot be read changes nothing.

        Raises:
            PullFailed: the line reports an error.
        """
        try:
            with decode_errors("a pull"):
                self._add(parse_json(line))
        except Unreadable:
            pass
        return self.progress

    @property
    def progress(self) -> PullProgress:
        """The layers and bytes so far."""
        return PullProgress(
            layers_done=len(self._done),
            layers=len(self._layers),
            bytes_done=sum(done for done, _ in self._bytes.values()),
            bytes_total=sum(total for _, total in self._bytes.values()),
        )

    def _add(self, message: Mapping[str, Any]) -> None:
        if error := message.get("error"):
            raise PullFailed(f"{self._image}: {cut(str(error))}")
        status, layer = message.get("status"), decode.text(message.get("id", ""))
        if status not in _DONE | _UNDER_WAY or len(self._layers | {layer}) > _MOST_LAYERS:
            return
        self._layers.add(layer)
        if status == "Downloading":
            detail = message.get("progressDetail") or {}
            self._bytes[layer] = (_size(detail, "current"), _size(detail, "total"))
        elif status in _DONE | {"Download complete"} and layer in self._bytes:
            done, total = self._bytes[layer]
            self._bytes[layer] = (max(done, total), max(done, total))
        if status in _DONE:
            self._done.add(layer)


def _size(detail: Mapping[str, Any], name: str) -> int:
    return decode.whole(detail.get(name, 0), 0, _MOST_BYTES)
