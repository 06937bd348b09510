"""Commands beside a daemon, also if its socket's path is longer than a unix address."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.cli import GOOD, Cli
from tests.harness.daemon import Daemon
from tests.harness.instance import Instance
from tests.harness.proxy import FaultProxy

pytestmark = pytest.mark.engine


@pytest.fixture
def deep_cli(instance: Instance, tmp_path: Path) -> Iterator[Cli]:
    """Commands beside a daemon whose control socket has a path too long for a unix address."""
    home = tmp_path / ("deep" * 30)
    home.mkdir()
    deep = {"RECONCILER_RUNTIME_DIR": str(home / "run")}
    with Daemon(instance, home, env=deep) as daemon:
        daemon.write(GOOD)
        daemon.start().wait_event("daemon.ready")
        yield Cli(home, daemon.env)
        assert daemon.terminate() == 0
        assert list((home / "run").iterdir()) == []


def test_socket_with_a_long_path_serves_and_is_removed(deep_cli: Cli) -> None:
    path = deep_cli.home / "run" / "control.sock"
    assert len(str(path)) > 108
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    done = deep_cli("apply")
    assert (done.returncode, done.stdout) == (0, "converged: 3 sandboxes are as desired\n")
    done = deep_cli("status")
    assert "no daemon" not in done.stderr
    assert "alice" in done.stdout


def test_reload_reports_errors_and_held_deletions(daemon_cli: Cli, daemon: Daemon) -> None:
    assert daemon_cli("apply").returncode == 0
    assert (daemon_cli("reload").returncode, daemon_cli("reload").stdout) == (0, "")
    daemon.write(GOOD + "  bob: {spec: nope}\n")
    done = daemon_cli("reload")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{daemon.desired}:7:")
    daemon.write("sandboxes: [")
    done = daemon_cli("apply")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{daemon.desired}:")
    daemon.write("")
    done = daemon_cli("reload")
    assert done.returncode == 1
    assert "3 deletions await confirmation" in done.stderr
    assert "alice" in daemon_cli("export").stdout


def test_another_desired_file_is_planned_but_not_applied(daemon_cli: Cli, daemon: Daemon) -> None:
    assert daemon_cli("apply").returncode == 0
    other = daemon_cli.home / "other.yaml"
    other.write_text(GOOD + "  bob: {spec: box}\n")
    planned = daemon_cli("plan", "--desired", other)
    assert planned.returncode == 2
    assert {line.split(":")[0] for line in planned.stdout.splitlines()} == {"bob"}
    done = daemon_cli("apply", "--desired", other)
    assert done.returncode == 1
    assert f"follows {daemon.desired}, not {other}" in done.stderr
    assert daemon_cli("apply", "--desired", "desired.yaml").returncode == 0
    assert "bob" not in daemon_cli("export").stdout


def test_doctor_asks_the_running_daemon(daemon_cli: Cli, daemon: Daemon) -> None:
    assert daemon_cli("apply").returncode == 0
    done = daemon_cli("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"used by the daemon with pid {daemon.process.pid}" in done.stdout


def test_followed_log_ends_with_the_daemon(daemon_cli: Cli, daemon: Daemon) -> None:
    following = _follow_log(daemon_cli, daemon)
    assert daemon.terminate() == 0
    _, error = following.communicate(timeout=60)
    assert (following.returncode, error) == (1, "reconciler: the daemon stopped\n")
    assert daemon.events("library.log") == []


def test_ctrl_c_ends_follow_and_watch(daemon_cli: Cli, daemon: Daemon) -> None:
    following = _follow_log(daemon_cli, daemon)
    watching = daemon_cli.begin("status", "--watch", "--json")
    assert watching.stdout is not None
    assert len(json.loads(watching.stdout.readline())["sandboxes"]) == 3
    assert len(json.loads(watching.stdout.readline())["sandboxes"]) == 3
    for running in (following, watching):
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=60)
        assert (running.returncode, error.strip()) == (130, "")
    assert daemon_cli("status").returncode == 0


def test_followed_events_continue_after_a_restart(daemon_cli: Cli, daemon: Daemon) -> None:
    assert daemon_cli("apply").returncode == 0
    following = daemon_cli.begin("events", "bob", "--follow", "--json")
    daemon.terminate()
    mark = daemon.mark()
    daemon.start().wait_event("daemon.ready", since=mark)
    daemon.write(GOOD + "  bob: {spec: box}\n")
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["event"] == "record.added"
    following.kill()
    following.communicate()


def test_nothing_is_in_sync_without_the_engine(
    daemon: Daemon, proxy: FaultProxy, tmp_path: Path
) -> None:
    daemon.env["DOCKER_HOST"] = proxy.host
    daemon.write(GOOD)
    daemon.start().wait_event("daemon.ready")
    cli = Cli(tmp_path, daemon.env)
    assert cli("apply").returncode == 0
    proxy.refuse()
    daemon.wait_event("engine.lost")
    done = cli("plan")
    assert done.returncode == 1
    assert done.stderr.startswith("reconciler: ")
    done = cli("apply", "--timeout", "1s")
    assert done.returncode == 1
    assert "the engine is unreachable" in done.stderr
    done = cli("status")
    assert done.returncode == 1
    assert "engine: unreachable" in done.stdout


def _follow_log(cli: Cli, daemon: Daemon) -> "subprocess.Popen[str]":
    """Start to follow a log, and wait until it has printed a line."""
    daemon.write(GOOD.replace("[sleep, ", "[sh, -c, 'echo hello; sleep $0', "))
    assert cli("apply").returncode == 0
    following = cli.begin("logs", "alice", "--follow")
    assert following.stdout is not None
    assert following.stdout.readline() == "hello\n"
    return following
