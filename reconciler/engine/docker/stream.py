"""Read what an engine sends in bounded memory: lines of a stream, and JSON. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Bytes.
LONGEST_LOG_LINE: Final = 4096
# A row of a list has some 60 values. Each takes 50 to 250 bytes of memory, plus its text.
MOST_VALUES: Final = 2_000_000
_HEADER: Final = 8


class Splitter(Protocol):
    """Splits a stream of bytes into lines."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that ``data`` completes."""

    def end(self) -> Iterator[bytes]:
        """Yield what is left at the end of the stream."""


class Lines:
    """Splits at newlines. Of a line longer than ``longest`` bytes, only the beginning is kept."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._kept = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that ``data`` completes, without their newlines."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._keep(end)
            yield self._take()
        self._keep(rest)

    def end(self) -> Iterator[bytes]:
        """Yield the last line, if it had no newline."""
        if self._kept:
            yield self._take()

    def _keep(self, data: bytes) -> None:
        self._kept += data[: self._longest - len(self._kept)]

    def _take(self) -> bytes:
        line = bytes(self._kept).removesuffix(b"\r")
        self._kept.clear()
        return line


class Frames:
    """Splits the multiplexed stdout and stderr of a container without a terminal.

    Each frame is one byte for the output, three zero bytes, the payload's length in four bytes, and
    the payload.
    """

    def __init__(self, longest: int) -> None:
        self._outputs: dict[int, Lines] = defaultdict(lambda: Lines(longest))
        self._header = bytearray()
        self._left = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines of either output that ``data`` completes."""
        rest = memoryview(data)
        while rest:
            size = self._left or _HEADER - len(self._header)
            piece, rest = bytes(rest[:size]), rest[size:]
            if not self._left:
                self._header += piece
                if len(self._header) == _HEADER:
                    self._left = int.from_bytes(self._header[4:], "big")
                    if not self._left:
                        self._header.clear()
                continue
            self._left -= len(piece)
            output = self._header[0]
            if not self._left:
                self._header.clear()
            yield from self._outputs[output].feed(piece)

    def end(self) -> Iterator[bytes]:
        """Yield the last line of each output, if it had no newline."""
        for lines in self._outputs.values():
            yield from lines.end()


def log_splitter(*, terminal: bool) -> Splitter:
    """Return the splitter for a container's log; a terminal merges both outputs, without frames."""
    return Lines(LONGEST_LOG_LINE) if terminal else Frames(LONGEST_LOG_LINE)


async def lines_of(chunks: AsyncIterator[bytes], splitter: Splitter) -> AsyncIterator[bytes]:
    """Yield the lines of a stream as they arrive."""
    async for chunk in chunks:
        for line in splitter.feed(chunk):
            yield line
    for line in splitter.end():
        yield line


def parse_json(body: bytes) -> Any:
    """Parse JSON of at most ``MOST_VALUES`` values.

    Raises:
        ValueError: not JSON, not UTF-8, or too many values.
        RecursionError: nested too deeply.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError("too many values")

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(body.decode(), parse_constant=refuse)
