"""Two connection pools to one engine: calls, and streams, which would starve calls in a shared one.

This is where aiodocker is used. It limits neither a wait nor the size of an answer and never closes
a stream that is left early, so requests are sent and answers are read here.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

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
from reconciler.engine.docker import errors as docker_errors
from reconciler.engine.docker import requests
from reconciler.engine.docker.access import Access
from reconciler.engine.docker.bounded_json import decode
from reconciler.engine.docker.errors import common, cut, understood
from reconciler.engine.docker.host import Endpoint, resolve
from reconciler.progress import waiting
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aiodocker import Docker, DockerError

    from reconciler.engine.docker.errors import Translator
    from reconciler.engine.docker.requests import Request

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
_TAGS: Final = re.compile(r"<[^<>]*>")
_API_LIMIT: Final = re.compile(r"supported API version is (\d+)\.(\d+)")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def _aiodocker() -> tuple[type[Docker], type[DockerError]]:
    """Import aiodocker, which looks for a home directory and fails for a user that has none."""
    try:
        from aiodocker import Docker, DockerError  # noqa: PLC0415
    except RuntimeError:
        os.environ["HOME"] = os.sep
        try:
            from aiodocker import Docker, DockerError  # noqa: PLC0415
        finally:
            del os.environ["HOME"]
    return Docker, DockerError


if not TYPE_CHECKING:
    Docker, DockerError = _aiodocker()


class Client:
    """Sends requests, each within a time, and raises only this project's errors."""

    def __init__(self, docker_host: str | None) -> None:
        self._docker_host = docker_host
        self._agreeing = asyncio.Lock()
        self._calls: Docker | None = None
        self._streams: Docker | None = None
        self._connectors: list[aiohttp.BaseConnector] = []
        self._access = Access(time.monotonic)
        self._files = BoundedCalls()
        self._hint = ""
        self._api = _KNOWN_API

    @property
    def forbidden(self) -> tuple[Forbidden, ...]:
        """The parts of the API that were forbidden lately."""
        return self._access.forbidden

    @property
    def api_version(self) -> str:
        """The version of the API that is spoken; empty before it was agreed on."""
        spoken = self._calls.api_version if self._calls else _UNAGREED
        return "" if spoken == _UNAGREED else spoken.removeprefix("v")

    @property
    def is_local(self) -> bool:
        """Whether the engine was reached by a socket of this host."""
        return any(isinstance(each, aiohttp.UnixConnector) for each in self._connectors)

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
            async with self._answered(calls, request) as response:
                return await _content(response, request)

    async def headers(self, request: Request, seconds: float) -> Mapping[str, str]:
        """The headers of an answer that has nothing else."""
        async with _bounded(seconds, str(request), self._noticing(common)):
            calls, _ = await self._agreed()
            async with self._answered(calls, request) as response:
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
                response = await stack.enter_async_context(self._answered(streams, request))
            stack.callback(response.close)
            yield _chunks(response)

    async def _agreed(self) -> tuple[Docker, Docker]:
        async with self._agreeing:
            if self._calls is None or self._streams is None:
                self._calls, self._streams = await self._open()
            if _UNAGREED in {self._calls.api_version, self._streams.api_version}:
                await self._agree(self._calls, self._streams)
            return self._calls, self._streams

    async def _open(self) -> tuple[Docker, Docker]:
        endpoint = await self._endpoint()
        self._hint = endpoint.hint
        self._connectors = [_connector(endpoint), _connector(endpoint)]
        calls, streams = (_docker(endpoint.url, each) for each in self._connectors)
        return calls, streams

    async def _agree(self, *clients: Docker) -> None:
        """Agree on a version of the API; where no question about it is allowed, on a known one."""
        try:
            newest, oldest = await self._limits(clients[0])
            agreed = max(oldest, min(newest, _KNOWN_API))
        except Forbidden:
            agreed = self._api
        for client in clients:
            client.api_version = "v" + ".".join(map(str, agreed))

    async def _limits(self, docker: Docker) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The newest version and the oldest that the engine speaks."""
        version, ping = requests.get("version"), requests.get("_ping")
        try:
            async with self._answered(docker, version, versioned=False) as response:
                answer = await _content(response, version)
            with understood("its version"):
                return _numbers(answer["ApiVersion"]), _numbers(answer["MinAPIVersion"])
        except Forbidden:
            async with self._answered(docker, ping, versioned=False) as response:
                with understood("its version"):
                    return _numbers(response.headers["Api-Version"]), (0, 0)

    @asynccontextmanager
    async def _answered(
        self, docker: Docker, request: Request, *, versioned: bool = True
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The engine's answer, of which only the headers have been read."""
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
            raise DockerError(docker_errors.NO_CONNECTION, text) from error
        async with response:
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            if encoding != "identity" or response.status in _REDIRECTS:
                raise Unreadable(
                    f"{request}: the answer is compressed or leads elsewhere (status "
                    f"{response.status}, encoding {docker_errors.cut(encoding)}): see that no web "
                    "proxy stands before the engine"
                )
            if response.status >= _REFUSED:
                await self._refuse(request, response)
            self._access.answered(request)
            yield response

    async def _refuse(self, request: Request, response: aiohttp.ClientResponse) -> NoReturn:
        text = await _refusal(response)
        if error := self._access.refused(request, response.status, text):
            raise error
        if response.status not in docker_errors.GATEWAY:
            self._access.answered(request)
        raise DockerError(response.status, text)

    async def _endpoint(self) -> Endpoint:
        try:
            return await self._files.run("engine", resolve, self._docker_host, dict(os.environ))
        except SettingsError as error:
            # What names the engine is read again with each attempt, so it can be corrected.
            raise EngineUnavailable(str(error)) from error
        except OSError as error:
            raise EngineUnavailable(
                f"Docker's configuration cannot be read ({error.strerror}): set DOCKER_HOST"
            ) from error

    def _noticing(self, say: Translator) -> Translator:
        """Agree anew before the next request where the engine was replaced by another version."""

        def translate(status: int, text: str) -> EngineError:
            if docker_errors.is_other_version(status, text) and self._calls:
                self._calls.api_version = _UNAGREED
                if limit := _API_LIMIT.search(text):
                    self._api = (int(limit[1]), int(limit[2]))
                return common(status, text)
            return say(status, text)

        return translate


def _connector(endpoint: Endpoint) -> aiohttp.BaseConnector:
    if endpoint.socket:
        return aiohttp.UnixConnector(endpoint.socket, limit=0)
    return aiohttp.TCPConnector(limit=0, ssl=endpoint.ssl or True)


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
        return _TAGS.sub(" ", body).strip() or f"{response.status} {response.reason}"


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
