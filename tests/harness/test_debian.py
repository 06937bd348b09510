import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import debian

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def commands(monkeypatch):
    """Record what would be run, on a machine where no package is installed."""
    run = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: run.append(command))
    monkeypatch.setattr(debian, "_PACKAGES", dict.fromkeys(debian._PACKAGES, lambda: False))
    monkeypatch.setattr(debian, "_program", lambda _name: lambda: True)
    monkeypatch.setattr(debian, "running_engine", lambda: None)
    return run


@pytest.mark.parametrize("purpose", ["venv", "engine", "demo", "test", "fresh"])
def test_root_installs_all_packages_at_once_and_names_them(commands, monkeypatch, capsys, purpose):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    debian.provide(purpose)
    packages = list(debian._NEEDS[purpose])
    assert [command[:2] for command in commands] == [["apt-get", "update"], ["apt-get", "install"]]
    assert commands[1][-len(packages) :] == packages
    assert capsys.readouterr().err == f"installing {' '.join(packages)} with apt-get\n"


@pytest.mark.parametrize("purpose", ["venv", "engine", "demo", "test", "fresh"])
def test_without_root_one_line_names_all_packages(commands, monkeypatch, capsys, purpose):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["debian", purpose])
    assert debian.main() == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.endswith(f"apt-get install {' '.join(debian._NEEDS[purpose])}\n")
    assert message.count("\n") == 1
    assert commands == []


@pytest.mark.parametrize(
    ("user", "installed"), [(0, ["python3-venv", "busybox-static"]), (1000, [])]
)
def test_a_demo_uses_a_running_engine(commands, monkeypatch, user, installed):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(debian, "running_engine", lambda: "unix:///engine")
    monkeypatch.setitem(debian._PACKAGES, "python3-venv", lambda: user != 0)
    debian.provide("demo")
    assert [command[-len(installed) :] for command in commands[1:]] == [installed] * bool(installed)


def test_nothing_is_installed_twice(commands, monkeypatch):
    monkeypatch.setattr(debian, "_PACKAGES", dict.fromkeys(debian._PACKAGES, lambda: True))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    debian.provide("test")
    assert commands == []


def test_only_a_static_busybox_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "PATH", str(tmp_path))
    assert debian.static_busybox() is None
    shutil.copy(sys.executable, tmp_path / "busybox")
    assert debian.static_busybox() is None
    (tmp_path / "busybox").write_bytes(b"\x7fELF static")
    assert debian.static_busybox() == str(tmp_path / "busybox")


def test_ci_installs_nothing_that_make_test_installs():
    script = (ROOT / ".ci" / "run").read_text()
    assert [name for name in debian._PACKAGES if name in script] == []
    assert script.endswith("make test\n")
