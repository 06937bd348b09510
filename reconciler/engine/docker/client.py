"""The HTTP client of one engine, on aiodocker's sessions.

aiodocker limits neither the time nor the size of a response and never closes a stream that is left
early, so this module sends the requests and reads the responses itself. Streams use a second
connection pool, so that they cannot starve calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from reconciler.core.errors import (
    OUT_OF_FILES,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Forbidden,
    ReconcilerError,
    SettingsError,
    Unreadable,
    is_out_of_files,
)
from reconciler.engine.docker import errors, requests
from reconciler.engine.docker.access import Access
from reconciler.engine.docker.host import resolve
from reconciler.engine.docker.stream import parse_json
from reconciler.liveness import waiting
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aiodocker import Docker, DockerError

    from reconciler.engine.docker.errors import Translator
    from reconciler.engine.docker.requests import Request

# Bytes of one header. One holds a link's target, which a sandbox may choose: 4 KiB of path, times
# six in JSON, plus a third in base64.
_LONGEST_HEADER: Final = 1 << 16
# The newest API version that this client was tested with; a newer engine is asked for this one.
_KNOWN_API: Final = (1, 41)
_NOT_NEGOTIATED: Final = "auto"
# Bytes of an error response that are read: a proxy's page of HTML may be long.
_LONGEST_ERROR: Final = 1 << 16
# No compression: a small response could expand to any size.
_HEADERS: Final = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
_FIRST_ERROR: Final = 400
_TAGS: Final = re.compile(r"<[^<>]*>")
_API_LIMIT: Final = re.compile(r"supported API version is (\d+)\.(\d+)")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


if not TYPE_CHECKING:
    try:
        from aiodocker import Docker, DockerError
    except RuntimeError:
        # The import looks for a home directory and fails for a user without one.
        os.environ["HOME"] = os.sep
        try:
            from aiodocker import Docker, DockerError
        finally:
            del os.environ["HOME"]


class Client:
    """Sends requests, each with a time limit, and raises only this project's errors."""

    def __init__(self, docker_host: str | None) -> None:
        self._docker_host = docker_host
        self._connecting = asyncio.Lock()
        self._calls: Docker | None = None
        self._streams: Docker | None = None
        self._access = Access(time.monotonic)
        self._files = BoundedCalls()
        self._hint = ""
        self._api = _KNOWN_API

    @property
    def forbidden(self) -> tuple[Forbidden, ...]:
        """The parts of the API that were forbidden recently."""
        return self._access.forbidden

    @property
    def api_version(self) -> str:
        """The negotiated API version; empty before the negotiation."""
        version = self._calls.api_version if self._calls else _NOT_NEGOTIATED
        return "" if version == _NOT_NEGOTIATED else version.removeprefix("v")

    @property
    def is_local(self) -> bool:
        """Whether the engine was reached through a socket of this host."""
        return bool(self._calls and isinstance(self._calls.connector, aiohttp.UnixConnector))

    async def close(self) -> None:
        """Close every connection."""
        clients, self._calls, self._streams = (self._calls, self._streams), None, None
        for client in filter(None, clients):
            await client.close()
            await client.session.close()

    async def call(
        self, request: Request, seconds: float, translator: Translator = errors.common
    ) -> Any:
        """Return the decoded response: JSON, text, or an empty string."""
        async with self._translated(request, seconds, translator):
            calls, _ = await self._clients()
            async with self._response(calls, request) as response:
                return await _content(response, request)

    async def headers(self, request: Request, seconds: float) -> Mapping[str, str]:
        """Return the headers of a response without a body."""
        async with self._translated(request, seconds, errors.common):
            calls, _ = await self._clients()
            async with self._response(calls, request) as response:
                return response.headers

    @asynccontextmanager
    async def stream(
        self, request: Request, seconds: float, translator: Translator = errors.common
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Iterate over the response's bytes. The headers have to arrive within ``seconds``.

        The iteration raises EngineUnavailable if the connection breaks.
        """

        async def chunks() -> AsyncIterator[bytes]:
            try:
                async for chunk in response.content.iter_any():
                    yield chunk
            except (aiohttp.ClientError, OSError) as error:
                raise EngineUnavailable(
                    "the engine closed the connection: check that it is running"
                ) from error

        async with AsyncExitStack() as stack:
            async with self._translated(request, seconds, translator):
                _, streams = await self._clients()
                response = await stack.enter_async_context(self._response(streams, request))
            stack.callback(response.close)
            yield chunks()

    async def _clients(self) -> tuple[Docker, Docker]:
        """Return the clients for calls and for streams, connected, with a negotiated version."""
        async with self._connecting:
            if self._calls is None or self._streams is None:
                self._calls, self._streams = await self._connect()
            if _NOT_NEGOTIATED in {self._calls.api_version, self._streams.api_version}:
                agreed = await self._negotiate(self._calls)
                version = "v" + ".".join(map(str, agreed))
                self._calls.api_version = self._streams.api_version = version
            return self._calls, self._streams

    async def _connect(self) -> tuple[Docker, Docker]:
        """Find the engine's endpoint and create both clients, without sending a request."""
        try:
            endpoint = await self._files.run("engine", resolve, self._docker_host, dict(os.environ))
        except SettingsError as error:
            # The settings are read again at each attempt, so correcting them is enough.
            raise EngineUnavailable(str(error)) from error
        except OSError as error:
            raise EngineUnavailable(
                f"Docker's configuration cannot be read ({error.strerror}): set DOCKER_HOST"
            ) from error
        self._hint = endpoint.hint
        clients = []
        for _ in range(2):
            connector = (
                aiohttp.UnixConnector(endpoint.socket, limit=0)
                if endpoint.socket
                else aiohttp.TCPConnector(limit=0, ssl=endpoint.ssl or True)
            )
            session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                max_field_size=_LONGEST_HEADER,
            )
            clients.append(Docker(endpoint.url, connector=connector, session=session))
        return clients[0], clients[1]

    async def _negotiate(self, docker: Docker) -> tuple[int, ...]:
        """Return the API version to use; a known one if a proxy forbids both ways to ask."""
        version, ping = requests.get("version"), requests.get("_ping")
        try:
            try:
                async with self._response(docker, version, versioned=False) as response:
                    answer = await _content(response, version)
                with errors.decode_errors("its version"):
                    newest = _numbers(answer["ApiVersion"])
                    oldest = _numbers(answer["MinAPIVersion"])
            except Forbidden:
                async with self._response(docker, ping, versioned=False) as response:
                    with errors.decode_errors("its version"):
                        newest, oldest = _numbers(response.headers["Api-Version"]), (0, 0)
        except Forbidden:
            return self._api
        return max(oldest, min(newest, _KNOWN_API))

    @asynccontextmanager
    async def _response(
        self, docker: Docker, request: Request, *, versioned: bool = True
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send the request; the response's headers have been read, its body has not."""
        query = docker.session.request(
            request.method,
            docker._canonicalize_url(request.path, versioned_api=versioned),  # noqa: SLF001
            params=request.params,
            data=request.body,
            headers={**_HEADERS, **(request.headers or {})},
            allow_redirects=False,
        )
        try:
            response = await query
        except aiohttp.ClientConnectionError as error:
            text = f"no connection: {error}{self._hint}"
            raise DockerError(errors.NO_CONNECTION, text) from error
        async with response:
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            if encoding != "identity" or response.status in _REDIRECTS:
                raise Unreadable(
                    f"{request}: the response is compressed or a redirect (status "
                    f"{response.status}, encoding {errors.cut(encoding)}): check that no web "
                    "proxy is in front of the engine"
                )
            if response.status >= _FIRST_ERROR:
                page = (await _bytes(response, _LONGEST_ERROR)).decode(errors="replace")
                try:
                    text = str(json.loads(page)["message"])
                except Exception:  # noqa: BLE001 - a proxy sends a page, which may be anything
                    text = _TAGS.sub(" ", page).strip()
                # The response to a HEAD has no body.
                text = text or f"{response.status} {response.reason}"
                if forbidden := self._access.refused(request, response.status, text):
                    raise forbidden
                if response.status not in errors.GATEWAY:
                    self._access.answered(request)
                raise DockerError(response.status, text)
            self._access.answered(request)
            yield response

    @asynccontextmanager
    async def _translated(
        self, request: Request, seconds: float, translator: Translator
    ) -> AsyncIterator[None]:
        """Limit the block to ``seconds``, and turn every exception into this project's errors."""
        try:
            with waiting(seconds):
                async with asyncio.timeout(seconds):
                    yield
        except TimeoutError as error:
            raise EngineTimeout(
                f"the engine did not answer {request} within {seconds:g} s: check whether it is "
                "overloaded or stuck"
            ) from error
        except DockerError as error:
            raise self._translate(request, error, translator) from error
        except aiohttp.ClientResponseError as error:
            # The engine answered. That says nothing about whether other requests work.
            raise Unreadable(
                f"the engine's response to {request} cannot be read "
                f"({errors.cut(str(error.message))}): inspect the object that it is about"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            why = OUT_OF_FILES if is_out_of_files(error) else "the connection to the engine broke"
            raise EngineUnavailable(f"{request}: {why}") from error
        except ReconcilerError:
            raise
        except Exception as error:
            # A response may be broken in any way, and none may end this process.
            raise errors.unreadable(str(request), error) from error

    def _translate(
        self, request: Request, error: DockerError, translator: Translator
    ) -> EngineError:
        if is_out_of_files(error):
            return EngineUnavailable(f"{request}: {OUT_OF_FILES}")
        status, text = error.status, str(error.message)
        if errors.is_other_version(status, text) and self._calls:
            # The engine was upgraded or downgraded: negotiate again before the next request.
            self._calls.api_version = _NOT_NEGOTIATED
            if limit := _API_LIMIT.search(text):
                self._api = (int(limit[1]), int(limit[2]))
            return errors.common(status, text)
        return translator(status, text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


async def _content(response: aiohttp.ClientResponse, request: Request) -> Any:
    """Decode the body: JSON, or text if the engine says so."""
    body = await _bytes(response, request.longest)
    if len(body) > request.longest:
        raise Unreadable(
            f"the response to {request} is longer than {request.longest >> 20} MiB and was cut "
            "off: check that it is a supported engine"
        )
    if not body or response.content_type == "text/plain":
        return body.decode(errors="replace")
    with errors.decode_errors(str(request)):
        return parse_json(body)


async def _bytes(response: aiohttp.ClientResponse, longest: int) -> bytes:
    """Read the body up to one byte past ``longest``, and drop the rest."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > longest:
            response.close()
            break
    return bytes(body[: longest + 1])
