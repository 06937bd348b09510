"""HTTP/1.1 messages as they are on the wire: enough to stand between a client and an engine."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum, auto

_LAST_CHUNK = b"0\r\n\r\n"


class Framing(Enum):
    """How a body ends."""

    NONE = auto()
    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()
    HIJACKED = auto()


@dataclass
class Message:
    """A request's or an answer's first line, headers and, once it is read, body."""

    start: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> str:
        return next((v for k, v in self.headers if k.lower() == name), "")

    def without(self, *names: str) -> list[tuple[str, str]]:
        return [(k, v) for k, v in self.headers if k.lower() not in names]

    def head(self) -> bytes:
        lines = [self.start, *(f"{k}: {v}" for k, v in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def whole(self) -> bytes:
        """Return all of it, framed by length whatever its framing was."""
        headers = self.without("transfer-encoding", "content-length")
        headers.append(("Content-Length", str(len(self.body))))
        return Message(self.start, headers).head() + self.body

    @property
    def status(self) -> int:
        return int(self.start.split()[1])


def answer(status: int, body: bytes, content_type: str = "application/json") -> Message:
    return Message(f"HTTP/1.1 {status} Scripted", [("Content-Type", content_type)], body)


def request_framing(request: Message) -> Framing:
    if "chunked" in request.header("transfer-encoding").lower():
        return Framing.CHUNKED
    return Framing.LENGTH if int(request.header("content-length") or 0) else Framing.NONE


def answer_framing(method: str, response: Message) -> Framing:
    if response.status == 101 or "raw-stream" in response.header("content-type"):
        chunked = "chunked" in response.header("transfer-encoding").lower()
        return Framing.CHUNKED if chunked else Framing.HIJACKED
    if method == "HEAD" or response.status in {204, 304} or response.status < 200:
        return Framing.NONE
    if "chunked" in response.header("transfer-encoding").lower():
        return Framing.CHUNKED
    return Framing.LENGTH if response.header("content-length") else Framing.CLOSE


async def read_head(reader: asyncio.StreamReader) -> Message | None:
    """Read up to the blank line; None if the peer has closed the connection."""
    try:
        text = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    start, *lines = text.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return Message(start, [(name.strip(), value.strip()) for name, _, value in pairs])


async def read_body(reader: asyncio.StreamReader, message: Message, framing: Framing) -> bytes:
    match framing:
        case Framing.LENGTH:
            return await reader.readexactly(int(message.header("content-length")))
        case Framing.CHUNKED:
            return b"".join([chunk async for chunk in read_chunks(reader)])
        case Framing.CLOSE:
            return await reader.read()
        case _:
            return b""


async def read_chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield each chunk's content; a stream that is cut raises IncompleteReadError."""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        content = await reader.readexactly(size + 2)
        if not size:
            return
        yield content[:-2]


def chunk(content: bytes) -> bytes:
    """Frame a piece; an empty one ends the body."""
    return b"%x\r\n%s\r\n" % (len(content), content) if content else _LAST_CHUNK


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until the end, and the end too."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except (ConnectionError, OSError):
        writer.close()
