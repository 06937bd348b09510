"""Docker's streams cut into lines, in bounded memory whatever a container writes. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

LONGEST_LOG_LINE: Final = 4096
_HEADER: Final = 8


class Splitter(Protocol):
    """Takes bytes as they come and gives lines."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that ``data`` completes."""

    def end(self) -> Iterator[bytes]:
        """What is left when the stream has ended."""


class Lines:
    """Splits at newlines. Of a line longer than ``longest`` bytes, only the beginning is kept."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._kept = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that ``data`` completes, without their newlines."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._keep(end)
            yield self._take()
        self._keep(rest)

    def end(self) -> Iterator[bytes]:
        """The last line, where it had no newline."""
        if self._kept:
            yield self._take()

    def _keep(self, data: bytes) -> None:
        self._kept += data[: self._longest - len(self._kept)]

    def _take(self) -> bytes:
        line = bytes(self._kept).removesuffix(b"\r")
        self._kept.clear()
        return line


class Frames:
    """Takes apart the two outputs of a container without a terminal.

    Each frame is a byte that names the output, three zeros, its length in four bytes, and as many
    bytes of the output.
    """

    def __init__(self, longest: int) -> None:
        self._outputs: dict[int, Lines] = defaultdict(lambda: Lines(longest))
        self._header = bytearray()
        self._left = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines of either output that ``data`` completes."""
        snapshot = memoryview(data)
        while snapshot:
            size = self._left or _HEADER - len(self._header)
            piece, snapshot = bytes(snapshot[:size]), snapshot[size:]
            if self._left:
                yield from self._payload(piece)
            else:
                self._head(piece)

    def end(self) -> Iterator[bytes]:
        """The last line of each output, where it had no newline."""
        for lines in self._outputs.values():
            yield from lines.end()

    def _payload(self, piece: bytes) -> Iterator[bytes]:
        self._left -= len(piece)
        output = self._header[0]
        if not self._left:
            self._header.clear()
        yield from self._outputs[output].feed(piece)

    def _head(self, piece: bytes) -> None:
        self._header += piece
        if len(self._header) == _HEADER:
            self._left = int.from_bytes(self._header[4:], "big")
            if not self._left:
                self._header.clear()


def log_splitter(*, terminal: bool) -> Splitter:
    """What fits a container's log; with a terminal both outputs are one, without frames."""
    return Lines(LONGEST_LOG_LINE) if terminal else Frames(LONGEST_LOG_LINE)


async def lines_of(chunks: AsyncIterator[bytes], splitter: Splitter) -> AsyncIterator[bytes]:
    """Lines as they come."""
    async for chunk in chunks:
        for line in splitter.feed(chunk):
            yield line
    for line in splitter.end():
        yield line
