"""The shipped unit and user, as systemd's own tools judge them."""

import configparser
import json
import re
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
EXECUTABLE = "/opt/reconciler/bin/reconciler"
EXPOSURE = 1.5


def run(*command):
    # A missing tool is a failure: `make test` installs systemd.
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def installed(tmp_path):
    """The unit as it is, but for its program, which need not be on the machine that tests."""
    program = tmp_path / "reconciler"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "reconciler.service"
    unit.write_text((SYSTEMD / unit.name).read_text().replace(EXECUTABLE, str(program)))
    return unit


class _Unit(configparser.RawConfigParser):
    optionxform = staticmethod(str)


@pytest.fixture
def service():
    unit = _Unit(strict=False)
    unit.read(SYSTEMD / "reconciler.service")
    return unit["Service"]


def exposure(unit):
    judged = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
    return float(re.search(r"Overall exposure level for \S+: ([\d.]+)", judged.stdout)[1])


def test_systemd_analyze_verify_is_silent(installed):
    verdict = run("systemd-analyze", "verify", "--man=no", installed)
    assert (verdict.returncode, verdict.stdout, verdict.stderr) == (0, "", "")


def test_verify_would_find_a_mistake(installed):
    installed.write_text(installed.read_text().replace("KillMode=mixed", "KillMood=mixed"))
    assert "KillMood" in run("systemd-analyze", "verify", "--man=no", installed).stderr


def test_exposure_is_low(installed):
    measured = exposure(installed)
    print(f"exposure {measured}")
    assert measured <= EXPOSURE


def test_no_protection_is_missing_beyond_those_that_are_needed(installed):
    judged = run("systemd-analyze", "security", "--offline=true", "--json=short", installed)
    missing = {row["name"] for row in json.loads(judged.stdout) if float(row["exposure"] or 0) > 0}
    assert missing <= {
        "RootDirectory=/RootImage=",  # the virtual environment, certificates, resolver
        "SupplementaryGroups=",  # the engine's socket
        "RestrictAddressFamilies=~AF_UNIX",  # the engine, the journal, the control socket
        "RestrictAddressFamilies=~AF_(INET|INET6)",  # probes
        "PrivateNetwork=",  # probes
        "PrivateUsers=",  # membership of group docker is the host's
        "DeviceAllow=",  # ProtectClock lets the clock be read
        "IPAddressDeny=",  # localhost is allowed: probes
    }


def test_the_drop_in_for_newer_systemds_is_no_error_on_this_one(installed):
    folder = installed.parent / "reconciler.service.d"
    folder.mkdir()
    drop_in = SYSTEMD / "reconciler.service.d" / "10-systemd-254.conf"
    (folder / drop_in.name).write_text(drop_in.read_text())
    assert run("systemd-analyze", "verify", "--man=no", installed).returncode == 0


def test_the_daemon_outlives_its_engine():
    text = (SYSTEMD / "reconciler.service").read_text()
    assert "\nWants=docker.service\n" in text
    assert not re.search(r"^(Requires|BindsTo|PartOf|Requisite)=", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("Type", "notify"),
        ("ExecReload", f"{EXECUTABLE} reload"),
        ("Restart", "always"),
        ("WatchdogSec", "30s"),
        ("StateDirectoryMode", "0700"),
        ("User", "reconciler"),
    ],
)
def test_what_the_daemon_relies_on_is_set(service, option, value):
    assert service[option] == value


@pytest.mark.parametrize("groups", ["root:x:0:\n", "root:x:0:\ndocker:x:998:\n"])
def test_sysusers_makes_a_member_of_docker(tmp_path, groups):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "group").write_text(groups)
    made = run("systemd-sysusers", f"--root={tmp_path}", SYSTEMD / "reconciler.sysusers.conf")
    assert made.returncode == 0, made.stderr
    entries = (tmp_path / "etc" / "group").read_text().splitlines()
    (docker,) = (entry for entry in entries if entry.startswith("docker:"))
    assert docker.endswith(":reconciler")
    (user,) = (tmp_path / "etc" / "passwd").read_text().splitlines()
    assert user.split(":")[0::5] == ["reconciler", "/var/lib/reconciler"]
    assert user.endswith("nologin")


def test_the_readme_installs_what_is_there():
    text = (SYSTEMD / "README.md").read_text()
    for name in re.findall(r"(?<![\w/])systemd/([\w.-]+)", text):
        assert (SYSTEMD / name).exists(), name
    assert EXECUTABLE in text
    assert "Group docker is root on the host" in text
