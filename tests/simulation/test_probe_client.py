"""The probe's client against friendly, broken and hostile peers."""

import asyncio
import gzip
import random
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.observe.probe_client import HttpRequest, Peer, ProbeImpossible, probe_http
from tests.harness.descriptors import none_left
from tests.harness.serving import serving
from tests.harness.tls import server_context

MOST = 8 << 10
# TLS records and the handshake come on top of the 8 KiB.
MOST_OVER_TLS = 64 << 10
PLAIN = HttpRequest("/health", {})
OVER_TLS = HttpRequest("/health", {}, tls=True)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Chunks = list[bytes]


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts the bytes and the pieces that the client reads from its sockets."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_read = self.pieces_read = 0

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        data = await super().sock_recv(sock, n)
        self.bytes_read += len(data)
        self.pieces_read += 1
        return data


class Asked:
    """The outcome of one probe and what it read."""

    def __init__(self, reason: str | None, loop: CountingLoop) -> None:
        self.reason = reason
        self.bytes_read, self.pieces_read = loop.bytes_read, loop.pieces_read


def ask(port: int, http_request: HttpRequest = PLAIN) -> Asked:
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, CountingLoop)
        return Asked(runner.run(probe_http(Peer("127.0.0.1", port), http_request)), loop)


@contextmanager
def peer(*serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port whose connections are served in a thread, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                for each in serve:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        each(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def sends(chunks: Chunks, end: str = "close") -> Callable[[socket.socket], None]:
    """Send the chunks once the request has arrived, then end the connection."""

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.recv(65536)
        for chunk in chunks:
            connection.sendall(chunk)
        if end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if end == "half-close":
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    return serve


def repeats(chunk: bytes, first: bytes = b"") -> Callable[[socket.socket], None]:
    """Send a chunk until the client closes."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(first)
        while True:
            connection.sendall(chunk)

    return serve


def check_bounded(asked: Asked, *, tls: bool = False) -> None:
    assert asked.bytes_read <= (MOST_OVER_TLS if tls else MOST)
    assert asked.pieces_read <= (256 if tls else 64) + 1
    assert asked.reason is None or re.fullmatch(r"[ -~]{1,200}", asked.reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (OK, None),
        (b"HTTP/1.0 204 \r\n\r\n", None),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", None),
        (b"HTTP/1.1 200\nX: y\n\n", None),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK, None),
        (b"HTTP/1.1 200 \xe9\xff\r\nSet-Cookie: a\xb4=b\r\n\r\n", None),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 No\r\n\r\n", "HTTP 500 on /health"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "HTTP 101 on /health"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP 404 on /health"),
        (b"", "the connection was closed before a status line"),
        (b"HTTP/1.1 200", "the connection was closed before a status line"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "the connection was closed before a status line"),
        (b"HTTP/1.1 100 Continue\r\nX: y\r\n", "the connection was closed before a status line"),
        *(
            (answer, "the response is not HTTP/1.1")
            for answer in (
                b"<html>HTTP/0.9</html>",
                b"\r\n" + OK,
                b"HTTP/2 200\r\n\r\n",
                b"HTTP/1.2 200 OK\r\n\r\n",
                b"HTTP/1.1  200 OK\r\n\r\n",
                b"HTTP/1.1 20 OK\r\n\r\n",
                b"HTTP/1.1 2000 OK\r\n\r\n",
                b"HTTP/1.1 999 OK\r\n\r\n",
                b"HTTP/1.1 +20 OK\r\n\r\n",
                b"HTTP/1.1 200\x00OK\r\n\r\n",
                b"HTTP/1.1 200 \x00\r\n\r\n",
                b"HTTP/1.1 200 a\rb\r\n\r\n",
                b"http/1.1 200 OK\r\n\r\n",
                b"HTTP/1.1 \xef\xbc\x92\xef\xbc\x90\xef\xbc\x90 OK\r\n\r\n",
                b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
                b"\x15\x03\x01\x00\x02\x02\x46",
                b"SSH-2.0-OpenSSH_9.2\r\n",
                b"s3cret-key password\r\n\r\n",
            )
        ),
    ],
)
@pytest.mark.parametrize("first", [0, 60], ids=["at once", "byte by byte"])
def test_status_line_decides(answer: bytes, reason: str | None, first: int):
    chunks = [bytes([byte]) for byte in answer[:first]]
    with peer(sends([*chunks, answer[first:]])) as port:
        asked = ask(port)
    assert asked.reason == reason
    check_bounded(asked)


@pytest.mark.parametrize(
    ("first", "chunk"),
    [
        (b"", b"HTTP/1.1 100 C\r\n\r\n" * 1000),
        (b"HTTP/1.1 100 C\r\n", b"X-Header: value\r\n" * 1000),
        (b"HTTP/1.1 103 ", b"x" * 8192),
        (b"", b"HTTP/1." + b"x" * (8 << 20)),
        (b"HTTP/1.1 200 OK", b"k" * 65536),
        (b"", gzip.compress(bytes(1 << 20))),
        (b"HTTP/1.1 100 C\r\nContent-Encoding: gzip\r\n", gzip.compress(bytes(1 << 20))),
        (b"HTTP/1.1 100 C\r\n", b"Set-Cookie: a\xb4=b\r\n" * 1000),
        (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"ffffffff\r\n" + b"x" * 65536),
    ],
)
@pytest.mark.parametrize("http_request", [PLAIN, OVER_TLS], ids=["plain", "tls"])
def test_endless_responses_are_cut_short(http_request: HttpRequest, first: bytes, chunk: bytes):
    with peer(repeats(chunk, first)) as port:
        check_bounded(ask(port, http_request), tls=http_request.tls)


def test_response_in_many_pieces_is_cut_short():
    with peer(sends([b"HTTP/1.1 100 ", *[b"x"] * 8000])) as port:
        asked = ask(port)
    check_bounded(asked)
    assert asked.reason is not None


@contextmanager
def refusing() -> Iterator[int]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_refused_connection_is_raised():
    with refusing() as port, pytest.raises(ConnectionRefusedError):
        ask(port)


def test_a_reset_connection_is_a_bad_answer():
    with peer(sends([], "reset")) as port:
        assert ask(port).reason == f"connection reset by peer on port {port}"


@pytest.mark.parametrize("address", ["192.0.2.1.5", "ff0e::1%9"])
def test_unknown_address_raises_only_os_errors(address: str):
    async def run() -> None:
        with suppress(ProbeImpossible):
            assert await probe_http(Peer(address, 1), PLAIN) is not None

    asyncio.run(run())


def test_out_of_files_leaves_health_unknown():
    async def run() -> None:
        with none_left(), pytest.raises(ProbeImpossible, match="may open no more files"):
            await probe_http(Peer("127.0.0.1", 1), PLAIN)

    asyncio.run(run())


HEADS: list[bytes] = [
    OK,
    b"HTTP/1.1 200 ",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 103 Early\r\nLink: </x>\r\n\r\n",
    b"Set-Cookie: a\xb4=b; Max-Age=" + b"9" * 400 + b"\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\r\n",
    b"\n",
    b"\x00",
    gzip.compress(b"x" * 1000),
]
answers = st.lists(
    st.one_of(
        st.sampled_from(HEADS),
        st.binary(max_size=200),
        st.builds(lambda chunk, times: chunk * times, st.sampled_from(HEADS), st.integers(1, 500)),
    ),
    max_size=6,
)
ends = st.sampled_from(["close", "reset", "half-close"])


@settings(deadline=None, max_examples=150)
@given(answers, ends, st.sampled_from([PLAIN, OVER_TLS]), st.randoms())
def test_no_answer_breaks_the_client(
    answer: Chunks, end: str, http_request: HttpRequest, chance: random.Random
):
    mutated = [_mutate(chunk, chance) if chance.random() < 0.3 else chunk for chunk in answer]
    with peer(sends(mutated, end)) as port:
        check_bounded(ask(port, http_request), tls=http_request.tls)


def _mutate(chunk: bytes, chance: random.Random) -> bytes:
    data = bytearray(chunk)
    for _ in range(chance.randint(1, 4)):
        if data:
            data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


async def over_tls(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    http_request: HttpRequest,
) -> str | None:
    def start(callback: Any, *address: Any) -> Awaitable[asyncio.Server]:
        return asyncio.start_server(callback, *address, ssl=server_context())

    async with serving(handle, start, "127.0.0.1", 0) as server:
        return await probe_http(Peer("127.0.0.1", server.sockets[0].getsockname()[1]), http_request)


@pytest.mark.asyncio(loop_factories=["real"])
async def test_https_does_not_verify_the_certificate():
    heard: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)

    http_request = HttpRequest(
        "/é x?y=1#z", {"X-Key": "v", "accept": "text/x"}, "localhost", tls=True
    )
    assert await over_tls(handle, http_request) is None
    request_line, *headers = heard[0].decode().split("\r\n")
    assert request_line == "GET /%C3%A9%20x?y=1%23z HTTP/1.1"
    assert headers == [
        *("Host: localhost", "User-Agent: reconciler", "Connection: close"),
        *("X-Key: v", "accept: text/x", "", ""),
    ]


@pytest.mark.asyncio(loop_factories=["real"])
async def test_endless_tls_response_is_cut_short():
    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 100 C\r\n\r\n" * 100)
                await writer.drain()

    reason = await over_tls(handle, OVER_TLS)
    assert reason == "the response has no status line in its first 8 KiB"


@pytest.mark.asyncio(loop_factories=["real"])
async def test_tls_without_a_response_is_bad():
    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    reason = await over_tls(handle, OVER_TLS)
    assert reason == "the connection was closed before a status line"
