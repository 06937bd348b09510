"""Small asyncio servers that close their connections at the end, so that no later test is hit."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(
    handle: Handler, start: Callable[..., Awaitable[asyncio.Server]], *address: Any
) -> AsyncIterator[asyncio.Server]:
    """Run `start(handler, *address)`, such as `asyncio.start_server`, for the block."""
    handlers: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            await handle(reader, writer)
        finally:
            handlers.discard(task)
            writer.close()

    server = await start(serve, *address)
    try:
        yield server
    finally:
        server.close()
        ending = list(handlers)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


async def say_nothing(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Read everything and send nothing."""
    while await reader.read(4096):
        pass
