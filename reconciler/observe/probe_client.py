"""A bounded client for probes: one connection and one request, and nothing is kept.

The peer is hostile. A probe reads at most 8 KiB in at most 64 pieces, parses the status line and
nothing else, and reports fixed texts only. The caller limits the time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, Self, TypeVar
from urllib.parse import quote

from reconciler.core.errors import OUT_OF_FILES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

_MOST_BYTES: Final = 8 << 10
_MOST_PIECES: Final = 64
# What a TLS server may send for the handshake and those 8 KiB: a chain of certificates is large.
_MOST_TLS_BYTES: Final = 64 << 10
_MOST_TLS_PIECES: Final = 256
_GOOD_STATUS: Final = range(200, 400)
_INTERIM: Final = frozenset(range(100, 200)) - {101}
_LONGEST_SHOWN_PATH: Final = 100
_BEGINNING: Final = b"HTTP/1."
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\x00\r\n]*)?\r?\n")
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")
_IN_PATH: Final = "".join(map(chr, range(0x21, 0x7F))).replace("#", "")

_HEADERS: Final = {"User-Agent": "reconciler", "Accept": "*/*", "Connection": "close"}

_NO_ROUTE: Final = "this host has no route to the published address {address}: see its network"
_NO_ROOM: Final = "this host has no memory or no local port for another connection"
_FORBIDDEN: Final = "a rule of this host forbids connections to {address}: see its firewall"
# Errors that say something about this host and nothing about the sandbox.
_OUR_TROUBLE: Final = {
    errno.EMFILE: OUT_OF_FILES,
    errno.ENFILE: OUT_OF_FILES,
    errno.ENETUNREACH: _NO_ROUTE,
    errno.EHOSTUNREACH: _NO_ROUTE,
    errno.ENETDOWN: _NO_ROUTE,
    errno.EAFNOSUPPORT: _NO_ROUTE,
    errno.EADDRNOTAVAIL: _NO_ROUTE,
    errno.EAGAIN: _NO_ROOM,
    errno.ENOBUFS: _NO_ROOM,
    errno.ENOMEM: _NO_ROOM,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
}


class Unasked(Exception):
    """The sandbox could not be asked, which says nothing about its health.

    The text names the cause and the fix.
    """


class _Bad(Exception):
    """The answer is bad; the text is ours, never the peer's."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a sandbox listens: an address or a host name, and a port."""

    address: str
    port: int

    @property
    def authority(self) -> str:
        """The address and the port, as they stand in a URL."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else str(self)

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Question:
    """One GET request. ``host`` is the Host header; None: the peer's address and port."""

    path: str
    headers: Mapping[str, str]
    host: str | None = None
    tls: bool = False

    def encoded(self, peer: Peer) -> bytes:
        """The request as it is sent. Line breaks in a path are encoded."""
        own = {name.lower() for name in self.headers}
        headers = {
            "Host": self.host or peer.authority,
            **{name: value for name, value in _HEADERS.items() if name.lower() not in own},
            **self.headers,
        }
        lines = [
            f"GET {quote(self.path, safe=_IN_PATH)} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("ascii")


async def ask_http(peer: Peer, question: Question) -> str | None:
    """None where the status is 200 to 399, else what is wrong.

    Raises:
        ConnectionRefusedError: nothing listens.
        Unasked: this host cannot connect.
    """
    try:
        with await _connected(peer) as wire:
            channel = await _secured(wire, question.host) if question.tls else wire
            await channel.send(question.encoded(peer))
            status = await _final_status(channel)
    except _Bad as bad:
        return str(bad)
    except ssl.SSLError as error:
        return f"TLS failed: {error.reason or type(error).__name__}"
    except OSError as error:
        return _reason(error, peer)
    if status in _GOOD_STATUS:
        return None
    return f"HTTP {status} on {quote(question.path, safe=_IN_PATH)[:_LONGEST_SHOWN_PATH]}"


async def ask_tcp(peer: Peer, settles: float) -> str | None:
    """None where something listens on the port, else what is wrong.

    An engine's proxy accepts every connection, and closes it at once where nothing listens in the
    container. So a connection counts that gives a byte or stays open for ``settles`` seconds.

    Raises:
        ConnectionRefusedError: nothing listens.
        Unasked: this host cannot connect.
    """
    try:
        with await _connected(peer) as wire:
            try:
                async with asyncio.timeout(settles):
                    heard = await wire.receive() if settles else b"-"
            except TimeoutError:
                return None
    except OSError as error:
        return _reason(error, peer)
    return None if heard else "the connection is closed at once: nothing listens in the container"


def _reason(error: OSError, peer: Peer) -> str:
    if isinstance(error, ConnectionRefusedError):
        raise error
    if error.errno in _OUR_TROUBLE:
        raise Unasked(_OUR_TROUBLE[error.errno].format(address=peer.address)) from error
    if error.errno is None:
        return "the connection broke"
    return f"{os.strerror(error.errno).lower()} on port {peer.port}"


class _Wire:
    """A connection, and how much may still be read of it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self.bytes_left = _MOST_BYTES
        self.pieces_left = _MOST_PIECES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        """What has come; empty at the end of the stream."""
        if not self.bytes_left:
            raise _Bad("the answer has no status line in its first 8 KiB")
        if not self.pieces_left:
            raise _Bad("the answer's status line comes in too many pieces")
        data = await self._loop.sock_recv(self._sock, self.bytes_left)
        self.bytes_left -= len(data)
        self.pieces_left -= 1
        return data


class _Tls:
    """TLS over a wire. The certificate is not verified: the peer is a port of this host."""

    def __init__(self, wire: _Wire, server_name: str | None) -> None:
        wire.bytes_left, wire.pieces_left = _MOST_TLS_BYTES, _MOST_TLS_PIECES
        self._wire = wire
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context().wrap_bio(self._in, self._out, server_hostname=server_name)
        self._bytes_left = _MOST_BYTES

    async def shake_hands(self) -> None:
        await self._do(self._tls.do_handshake)

    async def send(self, data: bytes) -> None:
        await self._do(lambda: self._tls.write(data))

    async def receive(self) -> bytes:
        if not self._bytes_left:
            raise _Bad("the answer has no status line in its first 8 KiB")
        try:
            data = await self._do(lambda: self._tls.read(self._bytes_left))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        self._bytes_left -= len(data)
        return data

    async def _do(self, step: Callable[[], T]) -> T:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            else:
                await self._flush()
                return done

    async def _flush(self) -> None:
        if self._out.pending:
            await self._wire.send(self._out.read())

    async def _fill(self) -> None:
        data = await self._wire.receive()
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # A peer must not choose how much it costs: no groups of its own making, no second handshake.
    context.set_ciphers("DEFAULT:!kDHE")
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


async def _connected(peer: Peer) -> _Wire:
    family = socket.AF_INET6 if ":" in peer.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the socket's own method
        await asyncio.get_running_loop().sock_connect(sock, (peer.address, peer.port))
    except BaseException:
        sock.close()
        raise
    return _Wire(sock)


async def _secured(wire: _Wire, host: str | None) -> _Tls:
    """Shake hands; ``host`` without its port is the server name that is sent."""
    name = host.rpartition(":")[0] or host if host and "[" not in host else None
    tls = _Tls(wire, name)
    await tls.shake_hands()
    return tls


async def _final_status(channel: _Wire | _Tls) -> int:
    """Read up to the first status line that is not of an interim response."""
    received, begin = b"", 0
    while data := await channel.receive():
        received += data
        while (end := received.find(b"\n", begin)) >= 0:
            line = _STATUS_LINE.fullmatch(received, begin, end + 1)
            if line is None:
                raise _Bad("the answer is not HTTP/1.1")
            if (status := int(line[1])) not in _INTERIM:
                return status
            blank = _BLANK_LINE.search(received, end)
            if blank is None:
                break
            begin = blank.end()
        else:
            if not _BEGINNING.startswith(received[begin : begin + len(_BEGINNING)]):
                raise _Bad("the answer is not HTTP/1.1")
    raise _Bad("the connection was closed before a status line")
