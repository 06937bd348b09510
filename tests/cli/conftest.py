from pathlib import Path

import pytest

from tests.cli.cli import GOOD, Cli
from tests.harness.daemon import Daemon
from tests.harness.instance import Instance


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Commands with a valid desired file, and no engine."""
    (tmp_path / "desired.yaml").write_text(GOOD)
    return Cli(tmp_path)


@pytest.fixture
def engine_cli(tmp_path: Path, instance: Instance) -> Cli:
    """Commands with a valid desired file and the real engine, and no daemon."""
    (tmp_path / "desired.yaml").write_text(GOOD)
    return Cli(tmp_path, instance.env())


@pytest.fixture
def daemon_cli(daemon: Daemon, tmp_path: Path) -> Cli:
    """Commands beside a running daemon that has read a valid desired file."""
    daemon.write(GOOD)
    daemon.start().wait_event("daemon.ready")
    return Cli(tmp_path, daemon.env)
