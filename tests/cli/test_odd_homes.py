"""A daemon whose engine cannot be found: one plain error, tried again, and no traceback."""

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.cli import Cli


def lost(cli: Cli, env: Mapping[str, str]) -> str:
    """The first error that the daemon logs of its engine; it then ends when it is asked to."""
    apart = {
        "RECONCILER_LOG_FORMAT": "json",
        "RECONCILER_RUNTIME_DIR": "run",
        # Two daemons of one instance do not run side by side on one host, and tests do.
        "RECONCILER_INSTANCE": f"t{secrets.token_hex(4)}",
    }
    own = Cli(cli.home, {**apart, **env})
    process = own.begin("run")
    assert process.stderr is not None
    try:
        lines = (json.loads(line) for line in process.stderr if line.startswith("{"))
        errors = (line for line in lines if line["level"] == "error")
        first = next(errors)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert "Traceback" not in json.dumps(first) + rest
    assert first["event"] == "engine.lost"
    return str(first["error"])


@pytest.mark.parametrize(
    "host",
    [
        "npipe:////./pipe/docker_engine",
        "fd://",
        "ssh://me@host",
        "tcp://host:abc",
        "host:2375",
        "x",
    ],
)
def test_an_address_that_is_none(cli: Cli, host: str) -> None:
    assert "must be unix:///path/to.sock or tcp://host:port" in lost(cli, {"DOCKER_HOST": host})


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\0", '"text"'])
def test_a_broken_configuration(cli: Cli, content: str) -> None:
    (cli.home / "config.json").write_text(content)
    error = lost(cli, {"DOCKER_HOST": "", "DOCKER_CONFIG": str(cli.home)})
    assert str(cli.home / "config.json") in error


def test_a_context_that_is_not_there(cli: Cli) -> None:
    env = {"DOCKER_HOST": "", "DOCKER_CONTEXT": "gone", "DOCKER_CONFIG": str(cli.home)}
    assert "set DOCKER_HOST" in lost(cli, env)


def test_certificates_that_are_not_there(cli: Cli) -> None:
    missing = str(Path(cli.home) / "certificates")
    env = {"DOCKER_HOST": "tcp://h", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": missing}
    assert "DOCKER_CERT_PATH" in lost(cli, env)


def test_no_home_is_needed_where_the_settings_say_all(cli: Cli) -> None:
    env = {"HOME": "", "DOCKER_HOST": f"unix://{cli.home}/nobody.sock"}
    assert "nobody.sock" in lost(cli, env)


def test_a_user_without_a_passwd_entry(cli: Cli) -> None:
    """What a user id has that no account bears: nothing may ask where its home is."""
    script = (
        "import os, pathlib, sys\n"
        "def home():\n"
        "    if 'HOME' in os.environ: return pathlib.Path(os.environ['HOME'])\n"
        "    raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = home\n"
        "from reconciler.cli import main\n"
        "sys.argv = ['reconciler', 'doctor']\n"
        "main()\n"
    )
    env = {name: value for name, value in cli.environment.items() if name != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cli.home,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "nobody.sock" in done.stdout
    assert "Traceback" not in done.stderr
    assert "a defect of this program" not in done.stderr
