"""Bounded client for probes: one connection, one request, no state between two probes.

The peer is hostile. A probe reads at most 8 KiB in at most 64 pieces, parses only the status line,
and reports only fixed texts. The caller limits the time.
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
# Limits for TLS, with the handshake: a chain of certificates is large.
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

_NO_ROUTE: Final = "this host has no route to the published address {address}; check its network"
_NO_ROOM: Final = "this host has no memory or no local port for another connection"
_FORBIDDEN: Final = "this host forbids connections to {address}; check its firewall"
# Errors of this host, which prove nothing about the sandbox.
_HOST_ERRORS: Final = {
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


class ProbeImpossible(Exception):
    """The probe could not be made, which proves nothing about the sandbox's health.

    The text names the cause and the fix.
    """


class _Bad(Exception):
    """The response is bad; the text never contains anything from the peer."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Address or host name, and port, of a sandbox."""

    address: str
    port: int

    @property
    def authority(self) -> str:
        """The address and the port as in a URL."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else str(self)

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One GET request. ``host`` is the Host header; None: the peer's address and port."""

    path: str
    headers: Mapping[str, str]
    host: str | None = None
    tls: bool = False

    def encoded(self, peer: Peer) -> bytes:
        """Return the request as bytes. Line breaks in a path are encoded."""
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


async def probe_http(peer: Peer, request: HttpRequest) -> str | None:
    """Send an HTTP request; return None for a status from 200 to 399, else what is wrong.

    Raises:
        ConnectionRefusedError: nothing listens.
        ProbeImpossible: this host cannot connect.
    """
    try:
        with await _connect(peer) as connection:
            channel: _Connection | _Tls = connection
            if request.tls:
                host = request.host
                # The server name is the host without its port.
                name = host.rpartition(":")[0] or host if host and "[" not in host else None
                channel = tls = _Tls(connection, name)
                await tls.shake_hands()
            await channel.send(request.encoded(peer))
            status = await _final_status(channel)
    except _Bad as bad:
        return str(bad)
    except ssl.SSLError as error:
        return f"TLS failed: {error.reason or type(error).__name__}"
    except OSError as error:
        return _reason(error, peer)
    if status in _GOOD_STATUS:
        return None
    return f"HTTP {status} on {quote(request.path, safe=_IN_PATH)[:_LONGEST_SHOWN_PATH]}"


async def probe_tcp(peer: Peer, settles: float) -> str | None:
    """Connect to the port; return None if something listens there, else what is wrong.

    An engine's proxy accepts every connection, and closes it at once if nothing listens in the
    container. So a connection must give a byte or stay open for ``settles`` seconds.

    Raises:
        ConnectionRefusedError: nothing listens.
        ProbeImpossible: this host cannot connect.
    """
    try:
        with await _connect(peer) as connection:
            try:
                async with asyncio.timeout(settles):
                    heard = await connection.receive() if settles else b"-"
            except TimeoutError:
                return None
    except OSError as error:
        return _reason(error, peer)
    return None if heard else "the connection is closed at once: nothing listens in the container"


def _reason(error: OSError, peer: Peer) -> str:
    if isinstance(error, ConnectionRefusedError):
        raise error
    if error.errno in _HOST_ERRORS:
        raise ProbeImpossible(_HOST_ERRORS[error.errno].format(address=peer.address)) from error
    if error.errno is None:
        return "the connection broke"
    return f"{os.strerror(error.errno).lower()} on port {peer.port}"


class _Connection:
    """A connection and its read limits."""

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
        """Return the next piece; empty at the end of the stream."""
        if not self.bytes_left:
            raise _Bad("the response has no status line in its first 8 KiB")
        if not self.pieces_left:
            raise _Bad("the status line of the response comes in too many pieces")
        data = await self._loop.sock_recv(self._sock, self.bytes_left)
        self.bytes_left -= len(data)
        self.pieces_left -= 1
        return data


class _Tls:
    """TLS over a connection. The certificate is not verified: the peer is a port of this host."""

    def __init__(self, connection: _Connection, server_name: str | None) -> None:
        connection.bytes_left, connection.pieces_left = _MOST_TLS_BYTES, _MOST_TLS_PIECES
        self._connection = connection
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context().wrap_bio(self._in, self._out, server_hostname=server_name)
        self._bytes_left = _MOST_BYTES

    async def shake_hands(self) -> None:
        await self._do(self._tls.do_handshake)

    async def send(self, data: bytes) -> None:
        await self._do(lambda: self._tls.write(data))

    async def receive(self) -> bytes:
        if not self._bytes_left:
            raise _Bad("the response has no status line in its first 8 KiB")
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
                if data := await self._connection.receive():
                    self._in.write(data)
                else:
                    self._in.write_eof()
            else:
                await self._flush()
                return done

    async def _flush(self) -> None:
        if self._out.pending:
            await self._connection.send(self._out.read())


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Limit what a peer can cost: no custom groups, no second handshake.
    context.set_ciphers("DEFAULT:!kDHE")
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


async def _connect(peer: Peer) -> _Connection:
    family = socket.AF_INET6 if ":" in peer.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the socket's own method
        await asyncio.get_running_loop().sock_connect(sock, (peer.address, peer.port))
    except BaseException:
        sock.close()
        raise
    return _Connection(sock)


async def _final_status(channel: _Connection | _Tls) -> int:
    """Read up to the status line of the first response that is not interim."""
    received, begin = b"", 0
    while data := await channel.receive():
        received += data
        while (end := received.find(b"\n", begin)) >= 0:
            line = _STATUS_LINE.fullmatch(received, begin, end + 1)
            if line is None:
                raise _Bad("the response is not HTTP/1.1")
            if (status := int(line[1])) not in _INTERIM:
                return status
            blank = _BLANK_LINE.search(received, end)
            if blank is None:
                break
            begin = blank.end()
        else:
            if not _BEGINNING.startswith(received[begin : begin + len(_BEGINNING)]):
                raise _Bad("the response is not HTTP/1.1")
    raise _Bad("the connection was closed before a status line")
