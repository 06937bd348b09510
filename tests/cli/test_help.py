import re
import subprocess
import sys

import pytest

from reconciler import __version__
from tests.cli.cli import COMMANDS, ROOT, Cli


def test_help_lists_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert done.returncode == 0
    listed = done.stdout.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed if line] == list(COMMANDS)
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert done.returncode == 0
    assert re.search(rf"^ +.*reconciler .*\b{command}\b", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", ["run", "apply", "plan", "check", "status", "reload", "doctor"])
def test_help_has_exit_codes(cli: Cli, command: str) -> None:
    assert "Exit codes: 0" in cli(command, "--help").stdout


def test_version_is_printed(cli: Cli) -> None:
    assert cli("--version").stdout.strip() == f"reconciler, version {__version__}"


@pytest.mark.parametrize("arguments", [("--help",), ("check",), ("schema",), ("reload",)])
def test_commands_without_engine_do_not_load_its_client(
    cli: Cli, arguments: tuple[str, ...]
) -> None:
    script = (
        "import sys, atexit; from reconciler.cli import main\n"
        "atexit.register(lambda: print(*sys.modules, sep='\\n', file=sys.stderr)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=cli.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    loaded = set(done.stderr.split())
    assert "reconciler.cli" in loaded
    assert not loaded & {"aiodocker", "aiohttp", "fastapi", "uvicorn", "httpx", "rich"}


def test_no_colour_codes_in_a_pipe(cli: Cli) -> None:
    assert "\x1b" not in cli("--help").stdout + cli("doctor", FORCE_COLOR="").stdout


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("check", "--nonsense"), ("apply", "--timeout", "soon"), ("logs",)],
)
def test_usage_error_exits_with_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert "--help" in done.stderr
