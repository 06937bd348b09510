"""Every error is a sentence and an exit code, never a traceback."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.cli import Cli


@pytest.mark.parametrize(
    "arguments",
    [("plan",), ("status",), ("apply",), ("logs", "alice"), ("gc",), ("gc", "--dry-run")],
)
def test_unreachable_engine(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert "nobody.sock" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("reconciler: ")


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_invalid_engine_address(cli: Cli, command: str) -> None:
    done = cli(command, DOCKER_HOST="carrier pigeon")
    assert done.returncode == 1
    assert "carrier pigeon" in done.stderr


def test_apply_without_an_engine_stores_nothing(cli: Cli) -> None:
    cli("apply")
    assert cli("export", RECONCILER_DESIRED=str(cli.home / "none.yaml")).stdout.count("spec:") == 0


def test_all_invalid_settings_are_named_at_once(cli: Cli) -> None:
    done = cli("status", RECONCILER_WORKERS="0", RECONCILER_PORT_RANGE="9-1")
    assert done.returncode == 1
    assert done.stderr.startswith("reconciler: ")
    assert "RECONCILER_WORKERS: " in done.stderr
    assert "RECONCILER_PORT_RANGE: " in done.stderr


def test_invalid_and_missing_settings_files(cli: Cli) -> None:
    path = cli.home / "settings.yaml"
    path.write_text("instance: mine\ncolour: red\n")
    for arguments in (("--config", path, "status"), ("run", "--config", path)):
        done = cli(*arguments)
        assert done.returncode == 1
        assert "colour" in done.stderr
    assert "no such file" in cli("--config", cli.home / "none.yaml", "check").stderr


def test_flags_override_variables(cli: Cli) -> None:
    cli("--state-dir", cli.home / "mine", "--instance", "mine", "apply")
    assert (cli.home / "mine").exists()
    assert not (cli.home / "state").exists()


def test_reload_without_a_daemon_says_how_to_start_one(cli: Cli) -> None:
    done = cli("reload")
    assert done.returncode == 1
    assert "reconciler run" in done.stderr


def test_export_and_events_need_no_engine(cli: Cli) -> None:
    assert "alice" in cli("export").stdout
    assert cli("events", "--json").stdout.strip() == "[]"
    assert cli("events", "nobody").returncode == 0


def test_state_directory_that_is_a_file(cli: Cli) -> None:
    (cli.home / "state").write_text("")
    for command in ("plan", "apply", "events", "run"):
        done = cli(command)
        assert done.returncode == 1
        assert "state" in done.stderr


def test_file_that_is_no_database(cli: Cli) -> None:
    (cli.home / "state").mkdir(mode=0o700)
    (cli.home / "state" / "reconciler.db").write_bytes(b"no database" * 1000)
    for command in ("plan", "events", "export"):
        done = cli(command)
        assert done.returncode == 1
        assert "reconciler.db" in done.stderr


def test_database_of_a_newer_release(cli: Cli) -> None:
    cli.home.joinpath("state").mkdir(mode=0o700)
    with sqlite3.connect(cli.home / "state" / "reconciler.db") as database:
        database.execute("pragma user_version = 99")
    database.close()
    assert cli("plan").returncode == 1


def test_socket_without_a_listener_is_no_daemon(cli: Cli) -> None:
    _bind(cli).close()
    assert "no daemon is running" in cli("reload").stderr


def test_another_program_on_the_socket(cli: Cli) -> None:
    with _bind(cli) as listener:
        listener.listen()
        done = cli.begin("reload")
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]")
        _, error = done.communicate(timeout=60)
        connection.close()
    assert done.returncode == 1
    assert "the process that listens there is not a daemon of this release" in error


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_daemon_of_another_user(cli: Cli) -> None:
    """A folder that hides the socket is not mistaken for a missing daemon."""
    with _bind(cli):
        script = (
            "import os, sys; from pathlib import Path\n"
            "from reconciler.core.errors import ReconcilerError\n"
            "from reconciler.cli import backend\n"
            "from reconciler.settings import Settings\n"
            "settings = Settings(state_dir=Path(sys.argv[1]))\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "try:\n"
            "    with backend.running_daemon(settings) as daemon: print(daemon)\n"
            "except ReconcilerError as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(cli.home / "state")],
            env={**cli.environment, "HOME": "/"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert "run this as the daemon's user, or as root" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments", [("events", "--follow"), ("events", "--follow", "--json"), ("run",)]
)
def test_ctrl_c_leaves_no_traceback(cli: Cli, arguments: tuple[str, ...]) -> None:
    running = cli.begin(*arguments)
    if arguments == ("run",):
        assert running.stderr is not None
        while "engine.lost" not in running.stderr.readline():
            pass
    else:
        _wait_until_loaded(running)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == (0 if arguments == ("run",) else 130)
    assert "Traceback" not in error


@pytest.mark.parametrize("delay", [0.03, 0.1, 0.2])
def test_ctrl_c_while_libraries_load(cli: Cli, delay: float) -> None:
    script = (
        "import os, signal, threading; from reconciler.cli import main\n"
        f"threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "events", "--follow"],
        env=cli.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_closed_pipe_is_no_error(cli: Cli) -> None:
    command = f"{sys.executable} -m reconciler schema | true"
    done = subprocess.run(
        ["sh", "-c", command], env=cli.environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


def _bind(cli: Cli) -> socket.socket:
    (cli.home / "state").mkdir(mode=0o700)
    path = cli.home / "state" / "control.sock"
    listener = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH)
    listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)
    return listener


def _wait_until_loaded(running: "subprocess.Popen[str]") -> None:
    maps = Path(f"/proc/{running.pid}/maps")
    while "_sqlite3" not in maps.read_text():
        assert running.poll() is None
