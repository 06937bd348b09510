"""What goes on inside a container: its log, and commands run in it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from reconciler.core.errors import (
    CommandTimeout,
    EngineTimeout,
    EngineUnavailable,
    Forbidden,
    NotFound,
)
from reconciler.engine.docker import decode as codec
from reconciler.engine.docker import requests
from reconciler.engine.docker.errors import on_exec, understood
from reconciler.engine.docker.stream import lines_of, log_splitter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from reconciler.engine.docker.client import Client


# Commands whose end was not seen; those in containers that are gone count too.
_MOST_BEGUN: Final = 1024
# Seconds without another try once a command was forbidden: the engine keeps each that it was given.
_FORBIDDEN_FOR: Final = 60.0


class Inside:
    """Both timeouts are in seconds; a whole log's end must come within ``read_timeout``."""

    def __init__(self, client: Client, read_timeout: float, call_timeout: float) -> None:
        self._client = client
        self._read_timeout = read_timeout
        self._call_timeout = call_timeout
        self._begun: dict[tuple[str, ...], str] = {}
        self._forbidden: tuple[Forbidden, float] | None = None

    async def log_tail(self, container_id: str, lines: int, since: float) -> tuple[str, ...]:
        """The last lines of both streams."""
        tail: deque[str] = deque(maxlen=lines)
        try:
            async with (
                asyncio.timeout(self._read_timeout),
                self._log(container_id, lines, follow=False, since=since) as log,
            ):
                async for line in log:
                    tail.append(line)
        except TimeoutError as error:
            raise EngineTimeout(f"the log of {container_id[:12]} did not come in time") from error
        return tuple(tail)

    @asynccontextmanager
    async def follow_logs(self, container_id: str, lines: int) -> AsyncIterator[AsyncIterator[str]]:
        """The last lines, and more as they come."""
        async with self._log(container_id, lines, follow=True) as log:
            yield _until_broken(log)

    async def run(self, container_id: str, command: Sequence[str], limit: float) -> int:
        """The exit code of a command. One that does not end within ``limit`` seconds runs on.

        No engine can end it, so until it has ended the same command is not begun again.

        Raises:
            CommandTimeout: it did not end in time, or one that was begun earlier has not ended.
            EngineTimeout: the engine did not answer in time.
        """
        try:
            async with asyncio.timeout(limit):
                return await self._exec(container_id, command)
        except TimeoutError as error:
            exec_id = self._begun.get((container_id, *command))
            if exec_id is not None and await self._runs(exec_id):
                raise CommandTimeout(f"the command did not end within {limit:g} s") from error
            raise EngineTimeout(
                f"the engine did not run a command within {limit:g} s: see whether it is "
                "overloaded or stuck"
            ) from error

    @asynccontextmanager
    async def _log(
        self, container_id: str, lines: int, *, follow: bool, since: float = 0.0
    ) -> AsyncIterator[AsyncIterator[str]]:
        question = requests.get(requests.container(container_id, "json"))
        about = await self._client.call(question, self._read_timeout)
        with understood("a container"):
            splitter = log_splitter(terminal=bool(about["Config"]["Tty"]))
        request = requests.logs(container_id, lines, follow=follow, since=since)
        async with self._client.stream(request, self._read_timeout) as chunks:
            yield (
                line.decode(errors="surrogateescape") async for line in lines_of(chunks, splitter)
            )

    async def _exec(self, container_id: str, command: Sequence[str]) -> int:
        place = (container_id, *command)
        if place in self._begun and await self._runs(self._begun[place]):
            raise CommandTimeout("the same command, begun earlier, has not ended: see why it hangs")
        self._raise_forbidden()
        create = requests.exec_create(container_id, command)
        made = await self._client.call(create, self._call_timeout, on_exec)
        with understood("a command"):
            exec_id = codec.identifier(made)
        self._remember(place, exec_id)
        start = requests.exec_start(exec_id)
        try:
            async with self._client.stream(start, self._call_timeout, on_exec) as output:
                async for _ in output:
                    pass
        except Forbidden as error:
            self._begun.pop(place, None)
            self._forbidden = error, time.monotonic()
            raise
        self._begun.pop(place, None)
        result = await self._about(exec_id)
        with understood("a command's end"):
            return codec.exit_code(result["ExitCode"])

    def _raise_forbidden(self) -> None:
        if self._forbidden is not None:
            error, since = self._forbidden
            if time.monotonic() - since < _FORBIDDEN_FOR:
                raise Forbidden(str(error), error.part)
            self._forbidden = None

    def _remember(self, place: tuple[str, ...], exec_id: str) -> None:
        self._begun[place] = exec_id
        if len(self._begun) > _MOST_BEGUN:
            self._begun.pop(next(iter(self._begun)))

    async def _about(self, exec_id: str) -> Any:
        return await self._client.call(requests.get(f"exec/{exec_id}/json"), self._read_timeout)

    async def _runs(self, exec_id: str) -> bool:
        try:
            about = await self._about(exec_id)
        except NotFound:
            return False
        with understood("a command"):
            return bool(about["Running"])


async def _until_broken(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    with suppress(EngineUnavailable):
        async for line in lines:
            yield line
