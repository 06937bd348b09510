import json
import re
from pathlib import Path

import pytest

from tests.cli.cli import GOOD, Cli


def test_valid_file_prints_its_counts(cli: Cli) -> None:
    done = cli("check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{cli.desired}: valid, 1 specs, 3 sandboxes\n"


def test_every_error_has_a_line_and_column(cli: Cli) -> None:
    cli.desired.write_text(GOOD + "  bob: {spec: nope}\n  carol: {spec: box, colour: red}\n")
    done = cli("check")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    pattern = re.compile(rf"{re.escape(str(cli.desired))}:(\d+):(\d+): .+")
    assert [pattern.fullmatch(line)[1] for line in lines] == ["7", "8"]


def test_path_argument_overrides_the_setting(cli: Cli, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.yaml").write_text(GOOD)
    cli.desired.write_text("nonsense")
    done = cli("check", other)
    assert done.stdout.startswith(f"{other}: valid")


def test_defaults_of_the_settings_are_validated(cli: Cli) -> None:
    twice = '[{"name": "A", "container_port": 1}, {"name": "A", "container_port": 2}]'
    done = cli("check", RECONCILER_EXPOSED_PORTS=twice)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\x00\x01\xff", ":1:"),
        (b"a: &a [1]\nb: {*a\n", ":"),
        (b"version: 1\nversion: 1\n", ":2:1: "),
        (b"", ":1:1"),
    ],
)
def test_file_that_is_no_desired_file_is_an_error(cli: Cli, content: bytes, word: str) -> None:
    cli.desired.write_bytes(content)
    done = cli("check")
    assert done.returncode == 1
    assert word in done.stderr


def test_missing_file_is_an_error(cli: Cli) -> None:
    done = cli("check", "nowhere.yaml")
    assert done.returncode == 1
    assert "nowhere.yaml:1:1: no such file or folder" in done.stderr


def test_unreadable_file_is_an_error(cli: Cli) -> None:
    # Not even root can read it.
    done = cli("check", "/proc/self/mem")
    assert done.returncode == 1
    assert done.stderr.startswith("/proc/self/mem:1:1: ")


def test_check_creates_no_state_directory(cli: Cli) -> None:
    cli("check")
    assert not (cli.home / "state").exists()


def test_schema_describes_the_desired_file(cli: Cli) -> None:
    done = cli("schema")
    assert done.returncode == 0
    assert {"version", "specs", "sandboxes"} <= set(json.loads(done.stdout)["properties"])
