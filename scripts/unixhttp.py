"""Send HTTP requests to a Docker engine, over a unix socket or TCP."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

DEFAULT_HOST = "unix:///var/run/docker.sock"


class Answer(NamedTuple):
    """A complete response."""

    status: int
    body: bytes

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body or b"null")


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def connect(host: str, timeout: float = 30) -> http.client.HTTPConnection:
    """Return a connection for a DOCKER_HOST; it opens with the first request."""
    url = urlsplit(host)
    if url.scheme == "unix":
        return UnixConnection(url.path, timeout)
    if url.scheme in {"tcp", "http"} and url.hostname:
        return http.client.HTTPConnection(url.hostname, url.port or 2375, timeout=timeout)
    raise ValueError(f"cannot reach an engine at {host!r}: use unix:///PATH or tcp://HOST:PORT")


def request(
    host: str,
    method: str,
    path: str,
    body: bytes | BinaryIO | None = None,
    *,
    content_type: str = "application/json",
    timeout: float = 30,
) -> Answer:
    """Send one request on a new connection and read the response; a file is sent in chunks."""
    headers = {"Content-Type": content_type} if body is not None else {}
    with closing(connect(host, timeout)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read())


def answers(host: str, timeout: float = 5) -> bool:
    """Tell whether an engine answers there."""
    try:
        return request(host, "GET", "/_ping", timeout=timeout).status == http.client.OK
    except (OSError, http.client.HTTPException, ValueError):
        return False
