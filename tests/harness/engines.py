"""The engine that the tests share, and engines for one test alone."""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts import processes
from scripts.engine import PrivateEngine
from scripts.image import TEST_IMAGE, ensure_image
from scripts.unixhttp import answers
from tests.harness.docker import Docker

GIVEN = "RECONCILER_TEST_DOCKER_HOST"
# Set by the process that runs the session, and inherited by its workers.
OWNER = "RECONCILER_TEST_OWNER"
# Unix sockets' paths are short: not below pytest's own folders.
_ROOT = Path(tempfile.gettempdir())


def begin_session() -> None:
    """Name this process the owner of all private engines, and end those of dead owners."""
    os.environ[OWNER] = str(os.getpid())
    for directory in _ROOT.glob("rcl-*-*"):
        owner = directory.name.split("-")[1]
        if owner.isdigit() and not processes.alive(int(owner)):
            PrivateEngine(directory).destroy()


def end_session() -> None:
    """Destroy every private engine of the session, whichever worker started it."""
    for directory in _ROOT.glob(f"rcl-{os.environ[OWNER]}-*"):
        PrivateEngine(directory).destroy()


def shared_engine() -> Docker:
    """Return the session's engine, with the test image; the first worker to ask starts it."""
    host = os.environ.get(GIVEN)
    if host and not answers(host):
        raise RuntimeError(f"{GIVEN}={host} does not answer")
    directory = _ROOT / f"rcl-{os.environ[OWNER]}-shared"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _prepare(host or _start(PrivateEngine(directory)).host)


def directory_of(name: str) -> Path:
    """Where a private engine has all that is its own."""
    return _ROOT / f"rcl-{os.environ[OWNER]}-{name}"


@contextmanager
def private_engine(
    name: str, *, live_restore: bool = False, arguments: Sequence[str] = ()
) -> Iterator[PrivateEngine]:
    """Run an engine that the test may kill and restart, with the test image."""
    engine = PrivateEngine(directory_of(name), live_restore=live_restore, arguments=arguments)
    try:
        _prepare(_start(engine).host)
        yield engine
    finally:
        engine.destroy()


def _start(engine: PrivateEngine) -> PrivateEngine:
    try:
        engine.start()
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"the tests need a Docker engine: as root with docker.io installed they start their "
            f"own (`make test` sees to that); else name one by {GIVEN}\n{error}"
        ) from error
    return engine


def _prepare(host: str) -> Docker:
    ensure_image(host, TEST_IMAGE)
    return Docker(host)
