"""A daemon that cannot find its engine logs one plain error, and retries without a traceback."""

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.cli import Cli


def engine_error(cli: Cli, env: Mapping[str, str]) -> str:
    """Run the daemon; return the first error of its engine, and require a clean stop."""
    isolated = {
        "RECONCILER_LOG_FORMAT": "json",
        "RECONCILER_RUNTIME_DIR": "run",
        # Tests run in parallel, and two daemons of one instance refuse to.
        "RECONCILER_INSTANCE": f"t{secrets.token_hex(4)}",
    }
    own = Cli(cli.home, {**isolated, **env})
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
def test_invalid_docker_host(cli: Cli, host: str) -> None:
    assert "must be unix:///path/to.sock or tcp://host:port" in engine_error(
        cli, {"DOCKER_HOST": host}
    )


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\0", '"text"'])
def test_broken_docker_configuration(cli: Cli, content: str) -> None:
    (cli.home / "config.json").write_text(content)
    error = engine_error(cli, {"DOCKER_HOST": "", "DOCKER_CONFIG": str(cli.home)})
    assert str(cli.home / "config.json") in error


def test_missing_docker_context(cli: Cli) -> None:
    env = {"DOCKER_HOST": "", "DOCKER_CONTEXT": "gone", "DOCKER_CONFIG": str(cli.home)}
    assert "set DOCKER_HOST" in engine_error(cli, env)


def test_missing_tls_certificates(cli: Cli) -> None:
    missing = str(Path(cli.home) / "certificates")
    env = {"DOCKER_HOST": "tcp://h", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": missing}
    assert "DOCKER_CERT_PATH" in engine_error(cli, env)


def test_no_home_is_needed_if_docker_host_is_set(cli: Cli) -> None:
    env = {"HOME": "", "DOCKER_HOST": f"unix://{cli.home}/nobody.sock"}
    assert "nobody.sock" in engine_error(cli, env)


def test_user_without_a_passwd_entry(cli: Cli) -> None:
    """A user id without an account has no home, and nothing may require one."""
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
    assert "internal error" not in done.stderr
