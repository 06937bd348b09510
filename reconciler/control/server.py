"""The control socket: an HTTP server on a unix socket that only its owner can connect to."""

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

# Seconds for open responses to finish at shutdown. A followed log never finishes by itself.
_DRAIN_SECONDS: Final = 0.5
_FORCED_SHUTDOWN_SECONDS: Final = 5
# Also how often asyncio calls accept() in one iteration when no file descriptor is left.
_BACKLOG: Final = 64
_OWNER_ONLY: Final = 0o600


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers: the daemon handles signals."""
        yield


async def serve(app: FastAPI, path: Path, listener: socket.socket | None = None) -> None:
    """Serve until cancelled, then remove the socket.

    Args:
        app: The application that answers.
        path: The path of the socket.
        listener: The socket, if it is already bound.

    Raises:
        ControlSocketError: the socket cannot be created.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_FORCED_SHUTDOWN_SECONDS,
    )
    listener = listener or await bind(path)
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    try:
        # A cancelled uvicorn leaves its connections open, so shut it down instead.
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await asyncio.wait({serving}, timeout=_DRAIN_SECONDS)
        for connection in list(server.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()
        await serving
        raise
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            await BoundedCalls().run(path, partial(path.unlink, missing_ok=True))


async def bind(path: Path) -> socket.socket:
    """Return a unix socket bound to ``path``, replacing the one of a killed daemon.

    Call it only while holding the state lock.

    Raises:
        ControlSocketError: the socket cannot be created.
    """

    def bind_now() -> socket.socket:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_path(path) as short:
                listener.bind(short)
            # Safe: nobody can connect before the socket listens.
            path.chmod(_OWNER_ONLY)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)  # noqa: FBT003 - the signature is the library's
        return listener

    try:
        return await BoundedCalls().run(path, bind_now)
    except OSError as error:
        raise ControlSocketError(
            f"cannot create the control socket {path}: {error.strerror or error}"
        ) from error
