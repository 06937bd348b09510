"""Read container logs, and run commands in containers."""

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
from reconciler.engine.docker import decode, requests
from reconciler.engine.docker.errors import decode_errors, on_exec
from reconciler.engine.docker.stream import lines_of, log_splitter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from reconciler.engine.docker.client import Client

# Commands that were started and not seen to end; those of removed containers count too.
_MOST_STARTED: Final = 1024
# Seconds without another attempt once exec was forbidden: the engine keeps each created exec.
_FORBIDDEN_FOR: Final = 60.0


class ExecLogs:
    """Logs and commands of one engine's containers.

    ``read_timeout`` limits a whole log tail, ``call_timeout`` the creation of a command, in
    seconds.
    """

    def __init__(self, client: Client, read_timeout: float, call_timeout: float) -> None:
        self._client = client
        self._read_timeout = read_timeout
        self._call_timeout = call_timeout
        # The exec id of each command that may still run, by container and words.
        self._started: dict[tuple[str, ...], str] = {}
        self._forbidden: tuple[Forbidden, float] | None = None

    async def log_tail(self, container_id: str, lines: int, since: float) -> tuple[str, ...]:
        """Return the last lines of both streams."""
        tail: deque[str] = deque(maxlen=lines)
        try:
            async with (
                asyncio.timeout(self._read_timeout),
                self._log(container_id, lines, follow=False, since=since) as log,
            ):
                async for line in log:
                    tail.append(line)
        except TimeoutError as error:
            raise EngineTimeout(
                f"the engine did not send the log of container {container_id[:12]} within "
                f"{self._read_timeout:g} s: check whether it is overloaded or stuck"
            ) from error
        return tuple(tail)

    @asynccontextmanager
    async def follow_logs(self, container_id: str, lines: int) -> AsyncIterator[AsyncIterator[str]]:
        """Iterate over the last lines and new ones, until the connection ends."""

        async def until_broken() -> AsyncIterator[str]:
            with suppress(EngineUnavailable):
                async for line in log:
                    yield line

        async with self._log(container_id, lines, follow=True) as log:
            yield until_broken()

    @asynccontextmanager
    async def _log(
        self, container_id: str, lines: int, *, follow: bool, since: float = 0.0
    ) -> AsyncIterator[AsyncIterator[str]]:
        inspection = requests.get(requests.container(container_id, "json"))
        answer = await self._client.call(inspection, self._read_timeout)
        with decode_errors("a container"):
            splitter = log_splitter(terminal=bool(answer["Config"]["Tty"]))
        request = requests.logs(container_id, lines, follow=follow, since=since)
        async with self._client.stream(request, self._read_timeout) as chunks:
            yield (
                line.decode(errors="surrogateescape") async for line in lines_of(chunks, splitter)
            )

    async def run(self, container_id: str, command: Sequence[str], limit: float) -> int:
        """Run a command and return its exit code. It keeps running if it exceeds ``limit`` seconds.

        No engine can end a command, so the same one is not started again before it has ended.

        Raises:
            CommandTimeout: it, or the same command started earlier, has not ended in time.
            EngineTimeout: the engine did not answer in time.
        """
        key = (container_id, *command)
        try:
            async with asyncio.timeout(limit):
                return await self._exec(key)
        except TimeoutError as error:
            exec_id = self._started.get(key)
            if exec_id is not None and await self._is_running(exec_id):
                raise CommandTimeout(f"the command did not end within {limit:g} s") from error
            raise EngineTimeout(
                f"the engine did not run a command within {limit:g} s: check whether it is "
                "overloaded or stuck"
            ) from error

    async def _exec(self, key: tuple[str, ...]) -> int:
        """Run a command to its end, without a time limit."""
        container_id, *command = key
        if key in self._started and await self._is_running(self._started[key]):
            raise CommandTimeout(
                "the same command was started earlier and has not ended: check why it hangs"
            )
        if self._forbidden is not None:
            forbidden, since = self._forbidden
            if time.monotonic() - since < _FORBIDDEN_FOR:
                raise Forbidden(str(forbidden), forbidden.part)
            self._forbidden = None
        request = requests.exec_create(container_id, command)
        answer = await self._client.call(request, self._call_timeout, on_exec)
        with decode_errors("a command"):
            exec_id = decode.identifier(answer)
        self._started[key] = exec_id
        if len(self._started) > _MOST_STARTED:
            self._started.pop(next(iter(self._started)))
        start = requests.exec_start(exec_id)
        try:
            async with self._client.stream(start, self._call_timeout, on_exec) as output:
                async for _ in output:
                    pass
        except Forbidden as error:
            self._started.pop(key, None)
            self._forbidden = error, time.monotonic()
            raise
        self._started.pop(key, None)
        result = await self._inspect(exec_id)
        with decode_errors("a command's end"):
            return decode.exit_code(result["ExitCode"])

    async def _inspect(self, exec_id: str) -> Any:
        return await self._client.call(requests.get(f"exec/{exec_id}/json"), self._read_timeout)

    async def _is_running(self, exec_id: str) -> bool:
        try:
            answer = await self._inspect(exec_id)
        except NotFound:
            return False
        with decode_errors("a command"):
            return bool(answer["Running"])
