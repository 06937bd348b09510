"""The engine that the tests share, and private engines of single tests."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts import private, processes
from scripts.engine import PrivateEngine
from scripts.image import TEST_IMAGE, ensure_image
from scripts.unixhttp import answers
from tests.harness.docker import Docker

GIVEN = "RECONCILER_TEST_DOCKER_HOST"
# The session's folder: created by the main process, inherited by its workers.
FOLDER = "RECONCILER_TEST_FOLDER"
# Socket paths must be short, so it is not below pytest's folders.
_TMP = Path(tempfile.gettempdir())


def begin_session() -> None:
    """Create the folder of all private engines, and destroy engines of dead sessions."""
    for folder in _TMP.glob("rcl-*-*"):
        owner = folder.name.split("-")[1]
        if owner.isdigit() and not processes.alive(int(owner)) and private.is_own(folder):
            _destroy_all(folder)
    os.environ[FOLDER] = tempfile.mkdtemp(prefix=f"rcl-{os.getpid()}-")


def end_session() -> None:
    """Destroy every private engine of the session."""
    _destroy_all(Path(os.environ[FOLDER]))


def _destroy_all(folder: Path) -> None:
    for directory in folder.iterdir() if folder.exists() else ():
        if private.is_own(directory):
            PrivateEngine(directory).destroy()
    shutil.rmtree(folder, ignore_errors=True)


def shared_engine() -> Docker:
    """Return the session's engine, with the test image; the first worker to ask starts it."""
    host = os.environ.get(GIVEN)
    if host and not answers(host):
        raise RuntimeError(f"{GIVEN}={host} does not answer")
    directory = directory_of("shared")
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _prepare(host or _start(PrivateEngine(directory)).host)


def directory_of(name: str) -> Path:
    """Return the folder of a private engine."""
    return Path(os.environ[FOLDER]) / name


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
