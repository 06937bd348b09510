"""`pip install .` installs the same command as the source tree, with every file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMMANDS = [
    *("apply", "check", "doctor", "events", "export", "gc"),
    *("logs", "plan", "reload", "run", "schema", "status"),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(ROOT)], check=True, capture_output=True)
    return target


@pytest.mark.parametrize("file", sorted(ROOT.glob("requirements*.txt")), ids=lambda file: file.name)
def test_every_requirement_is_pinned_with_hashes(file):
    text = re.sub(r"(?m)^(#|-r ).*\n", "", file.read_text()).replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines()]
    assert lines
    loose = [name for name, *hashes in lines if "==" not in name or not hashes]
    assert loose == []
    assert {h[:14] for _, *hashes in lines for h in hashes} == {"--hash=sha256:"}


def run(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "reconciler"), *words],
        cwd=installed,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_installed_command_lists_every_command(installed):
    shown = run(installed, "--help").stdout
    assert [command for command in COMMANDS if f"\n  {command} " not in shown] == []


def test_installed_command_runs(installed):
    found = run(installed, "check", str(ROOT / "config" / "desired.yaml"))
    assert (found.returncode, found.stderr) == (0, "")


def test_wheel_has_every_module_and_file(installed):
    inside = {str(p.relative_to(installed)) for p in (installed / "reconciler").rglob("*")}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "reconciler").rglob("*.py")}
    shared = {
        f"reconciler/share/{p.relative_to(ROOT)}"
        for folder in ("config", "systemd")
        for p in (ROOT / folder).rglob("*")
        if p.is_file()
    }
    assert (modules | shared) - inside == set()
