"""The control socket: HTTP on a unix socket that only its owner may reach."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

import uvicorn

from reconciler.core.errors import ControlSocketError
from reconciler.telemetry.sockets import short_path
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from collections.abc import Iterator
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


async def serve(app: FastAPI, path: Path, listener: socket.socket | None = None) -> None:
    """Answer until cancelled, then remove the socket.

    Args:
        app: What answers.
        path: Where the socket is.
        listener: The socket, if it is already bound.

    Raises:
        ControlSocketError: the socket cannot be made.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_LAST_RESORT,
    )
    listener = listener or await bind(path)
    try:
        await _until_cancelled(_Server(config), listener)
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            await BoundedCalls().run(path, partial(path.unlink, missing_ok=True))


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


async def bind(path: Path) -> socket.socket:
    """A unix socket at ``path``. It replaces what is there: the state lock is ours.

    Raises:
        ControlSocketError: it cannot be made.
    """
    try:
        return await BoundedCalls().run(path, _bind, path)
    except OSError as error:
        raise ControlSocketError(
            f"the control socket {path} cannot be made: {error.strerror or error}"
        ) from error


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
