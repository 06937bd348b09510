"""CPU time of one probe, against a timer alone and a general HTTP client, in one run."""

import asyncio
import multiprocessing
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx

from benchmarks import figures
from reconciler.observe.probe_client import HttpRequest, Peer, probe_http, probe_tcp

_PAUSE = 0.002
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

Ask = Callable[[], Awaitable[object]]


def measure(probes: int, rounds: int) -> None:
    """Print the CPU time of each kind; the sides take turns, so that all meet the same machine."""
    with _server() as port:
        seconds = asyncio.run(_measure(port, probes, rounds))
    print(f"\nCPU of one probe, {probes} probes a round, {rounds} rounds")
    figures.cpu(seconds, baseline="a timer alone")


async def _measure(port: int, probes: int, rounds: int) -> dict[str, list[float]]:
    peer, request, url = Peer("127.0.0.1", port), HttpRequest("/", {}), f"http://127.0.0.1:{port}/"
    async with httpx.AsyncClient(trust_env=False) as client:
        sides: dict[str, Ask] = {
            "a timer alone": _nothing,
            "a tcp probe": lambda: probe_tcp(peer, 0.0),
            "an http probe": lambda: probe_http(peer, request),
            "the same, httpx": lambda: client.get(url),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, ask in sides.items():
                seconds[side].append(await _cpu(ask, probes))
    return seconds


async def _nothing() -> None:
    return


async def _cpu(ask: Ask, probes: int) -> float:
    """Return the CPU seconds of a pause and a probe."""
    began = time.process_time()
    for _ in range(probes):
        await asyncio.sleep(_PAUSE)
        await ask()
    return (time.process_time() - began) / probes


@contextmanager
def _server() -> Iterator[int]:
    """Answer every connection in another process, so that its CPU time does not count."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        server = multiprocessing.get_context("fork").Process(target=_serve, args=(listener,))
        server.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.terminate()
            server.join()


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            if connection.recv(65536):
                connection.sendall(_ANSWER)
