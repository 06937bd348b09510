import json
import re
from pathlib import Path

import pytest

from tests.cli.cli import GOOD, Cli


def test_a_valid_file_is_counted(cli: Cli) -> None:
    done = cli("check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{cli.desired}: valid, 1 specs, 3 sandboxes\n"


def test_every_error_has_its_place(cli: Cli) -> None:
    cli.desired.write_text(GOOD + "  bob: {spec: nope}\n  carol: {spec: box, colour: red}\n")
    done = cli("check")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    pattern = re.compile(rf"{re.escape(str(cli.desired))}:(\d+):(\d+): .+")
    assert [pattern.fullmatch(line)[1] for line in lines] == ["7", "8"]


def test_a_path_that_is_named_goes_first(cli: Cli, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.yaml").write_text(GOOD)
    cli.desired.write_text("nonsense")
    done = cli("check", other)
    assert done.stdout.startswith(f"{other}: valid")


def test_the_settings_defaults_count(cli: Cli) -> None:
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
def test_what_is_no_desired_file_is_said(cli: Cli, content: bytes, word: str) -> None:
    cli.desired.write_bytes(content)
    done = cli("check")
    assert done.returncode == 1
    assert word in done.stderr


def test_a_file_that_is_not_there(cli: Cli) -> None:
    done = cli("check", "nowhere.yaml")
    assert done.returncode == 1
    assert "nowhere.yaml:1:1: no such file or folder" in done.stderr


def test_a_file_that_cannot_be_read(cli: Cli) -> None:
    # Not even root can read it.
    done = cli("check", "/proc/self/mem")
    assert done.returncode == 1
    assert done.stderr.startswith("/proc/self/mem:1:1: ")


def test_it_makes_no_state(cli: Cli) -> None:
    cli("check")
    assert not (cli.home / "state").exists()


def test_the_schema_is_json_for_the_same_file(cli: Cli) -> None:
    done = cli("schema")
    assert done.returncode == 0
    assert {"version", "specs", "sandboxes"} <= set(json.loads(done.stdout)["properties"])
