"""The program with a shutdown that hangs while closing the engine's connections."""

import time

from reconciler.cli import main
from reconciler.engine.docker.engine import DockerEngine


async def _never(_: DockerEngine) -> None:
    while True:
        # Blocks the event loop too.
        time.sleep(3600)  # noqa: ASYNC251


if __name__ == "__main__":
    DockerEngine.close = _never  # type: ignore[method-assign]
    main()
