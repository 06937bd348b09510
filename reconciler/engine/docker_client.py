"""Two connection pools to one engine: calls, and streams, which would starve calls in a shared one.

This is where aiodocker is used. It never limits a wait and never closes a stream that is left
early, so both are done here.
"""

from __future__ import annotations

import asyncio
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
    is_out_of_files,
)
from reconciler.engine import docker_errors
from reconciler.engine.docker_errors import common, understood
from reconciler.engine.docker_host import Endpoint, resolve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from reconciler.engine.docker_errors import Translator
    from reconciler.engine.docker_requests import Request

# The version whose answers were measured: a newer engine is asked to speak it while it still does.
_KNOWN_API: Final = (1, 41)
_UNAGREED: Final = "auto"


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
        connectors, self._connectors = self._connectors, []
        for client in filter(None, clients):
            await client.close()
        for connector in connectors:
            await connector.close()

    async def call(self, request: Request, seconds: float, say: Translator = common) -> Any:
        """The decoded answer: JSON, text, or an empty string."""
        async with _bounded(seconds, str(request), self._noticing(say)):
            calls, _ = await self._agreed()
            return await _answer(calls, request)

    async def headers(self, request: Request, seconds: float) -> Mapping[str, str]:
        """The headers of an answer that has nothing else."""
        async with _bounded(seconds, str(request), self._noticing(common)):
            calls, _ = await self._agreed()
            return await _head(calls, request)

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
                response = await stack.enter_async_context(_query(streams, request))
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
        calls, streams = (Docker(endpoint.url, connector=each) for each in self._connectors)
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
    version = await clients[0]._query_json("version", versioned_api=False)  # noqa: SLF001
    with understood("its version"):
        newest, oldest = (_numbers(version[key]) for key in ("ApiVersion", "MinAPIVersion"))
        agreed = max(oldest, min(newest, _KNOWN_API))
    for client in clients:
        client.api_version = "v" + ".".join(map(str, agreed))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


async def _answer(docker: Docker, request: Request) -> Any:
    return await docker._query_json(  # noqa: SLF001 - the library has no wrapper for some calls
        request.path,
        request.method,
        params=request.params,
        data=request.body,
        headers=request.headers,
    )


async def _head(docker: Docker, request: Request) -> Mapping[str, str]:
    # The library looks for a refusal's words in the body, which the answer to a HEAD has not.
    url = docker._canonicalize_url(request.path, versioned_api=True)  # noqa: SLF001
    async with docker.session.head(url, params=request.params) as response:
        if not response.ok:
            raise DockerError(response.status, f"{request}: {response.reason}")
        return response.headers


@asynccontextmanager
async def _query(docker: Docker, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
    query = docker._query(  # noqa: SLF001 - the library reads its streams without bounds
        request.path,
        request.method,
        params=request.params,
        data=request.body,
        headers=request.headers,
    )
    async with query as response:
        yield response


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, OSError) as error:
        raise EngineUnavailable("the engine broke the connection: see that it runs") from error


@asynccontextmanager
async def _bounded(seconds: float, what: str, say: Translator) -> AsyncIterator[None]:
    try:
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
    except (aiohttp.ClientError, OSError) as error:
        why = OUT_OF_FILES if is_out_of_files(error) else "the connection to the engine broke"
        raise EngineUnavailable(f"{what}: {why}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"the engine's answer to {what} cannot be understood ({type(error).__name__}): "
            "see that it is a Docker engine"
        ) from error
