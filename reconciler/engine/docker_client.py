"""Two connection pools to one engine: calls, and streams, which would starve calls in a shared one.

This is where aiodocker is used. It limits neither a wait nor the size of an answer and never closes
a stream that is left early, so requests are sent and answers are read here.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiodocker import Docker, DockerError

from reconciler.core.errors import (
    OUT_OF_FILES,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ReconcilerError,
    Unreadable,
    is_out_of_files,
)
from reconciler.engine import docker_errors
from reconciler.engine import docker_requests as requests
from reconciler.engine.docker_errors import common, cut, understood
from reconciler.engine.docker_host import Endpoint, resolve
from reconciler.engine.docker_json import decode
from reconciler.progress import waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from reconciler.engine.docker_errors import Translator
    from reconciler.engine.docker_requests import Request

# Bytes of one header. Docker puts a link's target into one, which a sandbox may choose: 4 KiB of
# path, six bytes for each in JSON, and a third more in base64.
_LONGEST_HEADER: Final = 1 << 16
# The version whose answers were measured: a newer engine is asked to speak it while it still does.
_KNOWN_API: Final = (1, 41)
_UNAGREED: Final = "auto"
# Bytes of a refusal that are read: a proxy's page of HTML may be long.
_LONGEST_REFUSAL: Final = 1 << 16
# A compressed answer could unfold to any size.
_HEADERS: Final = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
_REFUSED: Final = 400
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Client:
    """Sends requests, each within a time, and raises only this project's errors."""

    def __init__(self, docker_host: str | None) -> None:
        self._docker_host = docker_host
        self._agreeing = asyncio.Lock()
        self._calls: Docker | None = None
        self._streams: Docker | None = None
        self._connectors: list[aiohttp.BaseConnector] = []

    @property
    def is_local(self) -> bool:
        """Whether the engine was reached by a socket of this host."""
        return any(isinstance(each, aiohttp.UnixConnector) for each in self._connectors)

    async def connect(self, seconds: float) -> None:
        """Find the engine and agree on a version of its API, once.

        Raises:
            EngineUnavailable: it does not answer; the next request tries again.
            SettingsError: what names the engine cannot be used.
        """
        async with _bounded(seconds, "GET /version", common):
            await self._agreed()

    async def close(self) -> None:
        """Let go of every connection."""
        clients, self._calls, self._streams = (self._calls, self._streams), None, None
        self._connectors = []
        for client in filter(None, clients):
            await client.close()
            await client.session.close()

    async def call(self, request: Request, seconds: float, say: Translator = common) -> Any:
        """The decoded answer: JSON, text, or an empty string."""
        async with _bounded(seconds, str(request), self._noticing(say)):
            calls, _ = await self._agreed()
            async with _answered(calls, request) as response:
                return await _content(response, request)

    async def headers(self, request: Request, seconds: float) -> Mapping[str, str]:
        """The headers of an answer that has nothing else."""
        async with _bounded(seconds, str(request), self._noticing(common)):
            calls, _ = await self._agreed()
            async with _answered(calls, request) as response:
                return response.headers

    @asynccontextmanager
    async def stream(
        self, request: Request, seconds: float, say: Translator = common
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The answer's bytes as they come. Entered with the headers, which come within a time.

        The iteration raises EngineUnavailable where the connection breaks.
        """
        async with AsyncExitStack() as stack:
            async with _bounded(seconds, str(request), self._noticing(say)):
                _, streams = await self._agreed()
                response = await stack.enter_async_context(_answered(streams, request))
            stack.callback(response.close)
            yield _chunks(response)

    async def _agreed(self) -> tuple[Docker, Docker]:
        async with self._agreeing:
            if self._calls is None or self._streams is None:
                self._calls, self._streams = await self._open()
            if _UNAGREED in {self._calls.api_version, self._streams.api_version}:
                await _agree(self._calls, self._streams)
            return self._calls, self._streams

    async def _open(self) -> tuple[Docker, Docker]:
        endpoint = await asyncio.to_thread(resolve, self._docker_host, dict(os.environ))
        self._connectors = [_connector(endpoint), _connector(endpoint)]
        calls, streams = (_docker(endpoint.url, each) for each in self._connectors)
        return calls, streams

    def _noticing(self, say: Translator) -> Translator:
        """Agree anew before the next request where the engine was replaced by another version."""

        def translate(status: int, text: str) -> EngineError:
            if docker_errors.is_other_version(status, text) and self._calls:
                self._calls.api_version = _UNAGREED
                return common(status, text)
            return say(status, text)

        return translate


def _connector(endpoint: Endpoint) -> aiohttp.BaseConnector:
    if endpoint.socket:
        return aiohttp.UnixConnector(endpoint.socket, limit=0)
    return aiohttp.TCPConnector(limit=0, ssl=endpoint.ssl or True)


async def _agree(*clients: Docker) -> None:
    question = requests.get("version")
    async with _answered(clients[0], question, versioned=False) as response:
        version = await _content(response, question)
    with understood("its version"):
        newest, oldest = (_numbers(version[key]) for key in ("ApiVersion", "MinAPIVersion"))
        agreed = max(oldest, min(newest, _KNOWN_API))
    for client in clients:
        client.api_version = "v" + ".".join(map(str, agreed))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _docker(url: str, connector: aiohttp.BaseConnector) -> Docker:
    session = aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_field_size=_LONGEST_HEADER,
    )
    return Docker(url, connector=connector, session=session)


@asynccontextmanager
async def _answered(
    docker: Docker, request: Request, *, versioned: bool = True
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The engine's answer, of which only the headers have been read."""
    url = docker._canonicalize_url(request.path, versioned_api=versioned)  # noqa: SLF001
    query = docker.session.request(
        request.method,
        url,
        params=request.params,
        data=request.body,
        headers={**_HEADERS, **(request.headers or {})},
        allow_redirects=False,
    )
    try:
        response = await query
    except aiohttp.ClientConnectionError as error:
        raise DockerError(docker_errors.NO_CONNECTION, f"no connection: {error}") from error
    async with response:
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity" or response.status in _REDIRECTS:
            raise Unreadable(
                f"{request}: the answer is compressed or leads elsewhere (status "
                f"{response.status}, encoding {docker_errors.cut(encoding)}): see that no web "
                "proxy stands before the engine"
            )
        if response.status >= _REFUSED:
            raise DockerError(response.status, await _refusal(response))
        yield response


async def _content(response: aiohttp.ClientResponse, request: Request) -> Any:
    """The decoded body: JSON, or text where the engine says so."""
    body = await _bytes(response, request.longest)
    if len(body) > request.longest:
        raise Unreadable(
            f"the answer to {request} is longer than {request.longest >> 20} MiB and was cut off: "
            "see that it is a Docker engine"
        )
    if not body or response.content_type == "text/plain":
        return body.decode(errors="replace")
    with understood(str(request)):
        return decode(body)


async def _refusal(response: aiohttp.ClientResponse) -> str:
    """The text of a refusal; its status where there is none, as in the answer to a HEAD."""
    body = (await _bytes(response, _LONGEST_REFUSAL)).decode(errors="replace")
    try:
        return str(json.loads(body)["message"])
    except Exception:  # noqa: BLE001 - a proxy answers with a page, and may answer with anything
        return body.strip() or f"{response.status} {response.reason}"


async def _bytes(response: aiohttp.ClientResponse, longest: int) -> bytes:
    """The body as far as one byte past ``longest``. The rest is not read."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > longest:
            response.close()
            break
    return bytes(body[: longest + 1])


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, OSError) as error:
        raise EngineUnavailable("the engine broke the connection: see that it runs") from error


@asynccontextmanager
async def _bounded(seconds: float, what: str, say: Translator) -> AsyncIterator[None]:
    try:
        with waiting(seconds):
            async with asyncio.timeout(seconds):
                yield
    except TimeoutError as error:
        raise EngineTimeout(
            f"the engine did not answer {what} within {seconds:g} s: see whether it is overloaded "
            "or stuck"
        ) from error
    except DockerError as error:
        if is_out_of_files(error):
            raise EngineUnavailable(f"{what}: {OUT_OF_FILES}") from error
        raise say(error.status, str(error.message)) from error
    except aiohttp.ClientResponseError as error:
        # The engine answered. That says nothing about whether other requests work.
        raise Unreadable(
            f"the engine's answer to {what} cannot be read ({cut(str(error.message))}): see what "
            "is unusual about the object that it is about"
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        why = OUT_OF_FILES if is_out_of_files(error) else "the connection to the engine broke"
        raise EngineUnavailable(f"{what}: {why}") from error
    except ReconcilerError:
        raise
    except Exception as error:
        # An answer may be broken in any way, and none may end this process.
        raise docker_errors.not_understood(what, error) from error
