"""The program, with an end that hangs: the engine's connections are never given back."""

import time

from reconciler.cli import main
from reconciler.engine.docker.engine import DockerEngine


async def _never(_: DockerEngine) -> None:
    while True:
        # Not even the event loop runs meanwhile.
        time.sleep(3600)  # noqa: ASYNC251


if __name__ == "__main__":
    DockerEngine.close = _never  # type: ignore[method-assign]
    main()
