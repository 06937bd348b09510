import atexit
import inspect
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

# The tests share code in tests/ and scripts/, wherever pytest was started.
sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.engine import PrivateEngine
from tests.harness import engines
from tests.harness.daemon import Daemon
from tests.harness.docker import Docker
from tests.harness.instance import Instance, instance_on
from tests.harness.proxy import FaultProxy
from tests.harness.scheduling import Scheduling


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job ignores Ctrl-C, and so would every command that a test begins.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        engines.begin_session()
        atexit.register(engines.end_session)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        engines.end_session()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def blockbuster(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Fail an async test in which the package blocks its event loop."""
    if not inspect.iscoroutinefunction(getattr(request, "function", None)):
        yield None
        return
    with blockbuster_ctx("reconciler") as guard:
        yield guard


@pytest.fixture(scope="session")
def engine() -> Docker:
    """A real engine with the test image; without one, the test fails and is never skipped."""
    return engines.shared_engine()


@pytest.fixture
def instance(engine: Docker) -> Iterator[Instance]:
    """An identity and a range of ports of the test's own on the shared engine."""
    with instance_on(engine) as own:
        yield own


@pytest.fixture
def daemon(instance: Instance, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on the shared engine, not yet started."""
    with Daemon(instance, tmp_path) as own:
        yield own


@pytest.fixture
def proxy(engine: Docker) -> Iterator[FaultProxy]:
    """A proxy to the shared engine; ``proxy.host`` is its address."""
    with FaultProxy(engine.host) as running:
        yield running


@pytest.fixture
def start_engine() -> Iterator[Callable[..., PrivateEngine]]:
    """Starts engines for this test alone: ``start_engine(live_restore=True)``."""
    with ExitStack() as stack:

        def start(*, live_restore: bool = False) -> PrivateEngine:
            own = engines.private_engine(secrets.token_hex(3), live_restore=live_restore)
            return stack.enter_context(own)

        yield start
