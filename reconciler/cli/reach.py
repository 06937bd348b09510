"""Whether a container can reach this host: asked from inside one."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from reconciler.core import naming
from reconciler.core.container_config import ContainerConfig
from reconciler.core.errors import EngineError, EngineTimeout
from reconciler.core.spec import SandboxSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from reconciler.engine.docker.engine import DockerEngine
    from reconciler.settings import Settings

_LIMIT: Final = 10.0
_HOST: Final = "host.docker.internal"


async def webhook_reach(
    settings: Settings,
    engine: DockerEngine,
    images: list[str],
) -> bool | None:
    """Whether a container reaches the webhook port; None where none of the images can tell.

    Raises:
        EngineTimeout: the engine does not get a container made, or away.
    """
    async with _answering(settings.host_port):
        for image in images:
            try:
                reached = await _ask_from(settings, engine, image)
            except EngineTimeout:
                raise
            except EngineError:
                continue
            if reached is not None:
                return reached
    return None


@asynccontextmanager
async def _answering(port: int) -> AsyncIterator[None]:
    """Something listens on the port: what is there already, or this process for the moment."""
    try:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "0.0.0.0", port)  # noqa: S104 - that is the question
    except OSError:
        yield
        return
    async with server:
        yield


async def _ask_from(settings: Settings, engine: DockerEngine, image: str) -> bool | None:
    if not await engine.has_image(image):
        return None
    container = await engine.create(_blueprint(settings, image))
    try:
        await engine.start(container)
        command = ["sh", "-c", _SCRIPT, "reach", _HOST, str(settings.host_port)]
        code = await engine.run_in(container, command, _LIMIT)
    finally:
        await engine.remove(container)
    return None if code >= _CANNOT_TELL else code == 0


# What is at hand differs from image to image. 126 and 127 are a shell's own: it cannot run that.
_CANNOT_TELL: Final = 126
_SCRIPT: Final = """
has() { command -v "$1" >/dev/null 2>&1; }
quietly() { "$@" </dev/null >/dev/null 2>&1; [ $? = 0 ]; }
if has nc; then quietly nc -w 3 "$1" "$2"
elif has timeout && has bash; then quietly timeout 3 bash -c "exec 3<>/dev/tcp/$1/$2"
elif has python3; then
  quietly python3 -c "import socket; socket.create_connection(('$1', $2), 3)"
else exit 127
fi
"""


def _blueprint(settings: Settings, image: str) -> ContainerConfig:
    return ContainerConfig(
        name=f"{settings.container_name_prefix}doctor.{secrets.token_hex(4)}",
        # It names no sandbox, so that no daemon takes it for one of its own.
        labels={**dict.fromkeys(naming.LABELS, ""), naming.LABEL_INSTANCE: settings.instance},
        spec=SandboxSpec(image=image, command=("sh", "-c", "sleep 60")),
        env={},
        ports={},
        publish_address=settings.publish_address,
        volume=None,
    )
