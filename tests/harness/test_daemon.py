"""The harness against a stand-in for the daemon: a package of that name with a few lines in it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.harness.docker import Docker
from tests.harness.instance import Instance

_STAND_IN = """
import json, os, sys, time
if sys.argv[1] == "status":
    print(json.dumps({"sandboxes": [{"name": "alice", "status": "RUNNING"}], "engine": {}}))
    sys.exit(0)
for line in ({"event": "daemon.started", "pid": os.getpid()}, {"event": "a", "sandbox": "alice"}):
    print(json.dumps(line), file=sys.stderr)
print("no json", file=sys.stderr)
time.sleep(float(os.environ["STAND_IN_SECONDS"]))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Daemon]:
    package = tmp_path / "package" / "reconciler"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_STAND_IN)
    instance = Instance("t", "t-", range(20000, 20100), Docker("unix:///nowhere"))
    env = {"PYTHONPATH": str(package.parent), "STAND_IN_SECONDS": "60"}
    with Daemon(instance, tmp_path / "home", env=env) as daemon:
        daemon.write("version: 1\n")
        yield daemon


def test_events_are_received_across_restarts(stand_in: Daemon) -> None:
    first = stand_in.start().wait_event("daemon.started")
    assert stand_in.wait_event("a", sandbox="alice")["sandbox"] == "alice"
    assert first["pid"] == stand_in.process.pid
    stand_in.wait_until(lambda: {"raw": "no json"} in stand_in.logs)
    stand_in.kill9()
    mark = stand_in.mark()
    stand_in.start()
    assert stand_in.wait_event("daemon.started", since=mark)["pid"] != first["pid"]
    assert len(stand_in.events("daemon.started")) == 2


def test_a_crash_ends_the_wait_at_once(stand_in: Daemon) -> None:
    stand_in.env["STAND_IN_SECONDS"] = "0"
    stand_in.start()
    with pytest.raises(AssertionError, match="no json"):
        stand_in.wait_event("never", timeout=30)
    assert stand_in.wait_exit() == 0


def test_commands_use_the_daemons_settings(stand_in: Daemon) -> None:
    assert stand_in.statuses() == {"alice": "RUNNING"}
    assert stand_in.env["RECONCILER_PORT_RANGE"] == "20000-20099"


def test_close_ends_a_running_daemon(stand_in: Daemon) -> None:
    pid = stand_in.start().process.pid
    stand_in.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not stand_in.runtime_dir.exists()
