"""The control socket: HTTP on a unix socket that only its owner may reach."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

import uvicorn

from reconciler.core.errors import StoreError
from reconciler.service.sockets import short_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from fastapi import FastAPI

# What an open answer gets to end by itself. A log that is followed never does.
_GOODBYE: Final = 0.5
_LAST_RESORT: Final = 5
# Also how often the event loop tries to accept in one turn when no descriptor is left.
_BACKLOG: Final = 64
_OWNER_ONLY: Final = 0o600


class _Server(uvicorn.Server):
    """Signals are the daemon's own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them as they are."""
        yield


async def serve(app: FastAPI, path: Path) -> None:
    """Answer until cancelled, then take the socket away.

    Raises:
        StoreError: the socket cannot be made.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_LAST_RESORT,
    )
    async with listening(path) as listener:
        await _until_cancelled(_Server(config), listener)


async def _until_cancelled(server: uvicorn.Server, listener: socket.socket) -> None:
    """A server that is cancelled leaves its connections open: it is asked to end instead."""
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await asyncio.wait({serving}, timeout=_GOODBYE)
        for connection in list(server.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()
        await serving
        raise


@contextlib.asynccontextmanager
async def listening(path: Path) -> AsyncIterator[socket.socket]:
    """A unix socket at ``path``, whatever stood there: the state lock is ours."""
    try:
        listener = await asyncio.to_thread(_bind, path)
    except OSError as error:
        raise StoreError(f"the control socket {path} cannot be made: {error.strerror}") from error
    try:
        yield listener
    finally:
        listener.close()
        await asyncio.to_thread(path.unlink, missing_ok=True)


def _bind(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as short:
            listener.bind(short)
        # Nobody can connect before it listens, so nobody can be earlier than this.
        path.chmod(_OWNER_ONLY)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)  # noqa: FBT003 - the signature is the library's
    return listener
