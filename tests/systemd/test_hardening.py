"""The hardening is in force, and what the daemon needs works under it."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.instance import Instance
from tests.systemd import attempts
from tests.systemd.service import UNIT, Service

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
EXPOSURE = 1.5
SCRIPT = "/opt/anybody/attempts.py"
PYTHON = "/opt/reconciler/bin/python3"
# The shipped unit with another program: it runs once, and leaves the daemon's runtime folder alone.
DROP_IN = """\
[Service]
Type=oneshot
ExecStart=
ExecStart={command}
ExecReload=
Restart=no
WatchdogSec=0
RuntimeDirectory=
RuntimeDirectory=attempts
"""


def status_of(service: Service) -> dict[str, str]:
    """What the kernel says of the daemon's rights."""
    lines = service.machine.sh(f"cat /proc/{service.pid}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def elsewhere(service: Service) -> Iterator[str]:
    """A listener on this host whose address is not 127.0.0.1, as HOST:PORT."""
    (config,) = service.instance.docker.networks()["bridge"]["IPAM"]["Config"]
    with socket.create_server((config["Gateway"], 0)) as listener:
        yield "{}:{}".format(*listener.getsockname())


@pytest.fixture
def tried(service: Service, elsewhere: str) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """How the attempts went as an ordinary process of the same user, and under the unit."""
    machine = service.machine
    machine.sh("install -d -m 0777 /opt/anybody /home/somebody; touch /tmp/seen")
    machine.write(SCRIPT, Path(attempts.__file__).read_text())
    port = published(service.instance)
    command = f"{PYTHON} {SCRIPT} {elsewhere} {port}"
    user = "-p User=reconciler -p SupplementaryGroups=docker"
    freely = machine.sh(f"systemd-run --quiet --pipe --wait {user} {command}")
    machine.write("/run/systemd/system/attempts.service.d/x.conf", DROP_IN.format(command=command))
    machine.sh(f"cp /etc/systemd/system/{UNIT} /run/systemd/system/attempts.service")
    cursor = machine.cursor()
    try:
        machine.sh("systemctl daemon-reload; systemctl start attempts")
        (said,) = machine.journal("-u", "attempts", "-t", "python3", since=cursor)
        yield json.loads(freely), json.loads(said["MESSAGE"])
    finally:
        machine.sh("rm -r /run/systemd/system/attempts.*; systemctl daemon-reload")
        machine.sh("rm -r /opt/anybody /home/somebody /tmp/seen")


def published(instance: Instance) -> int:
    (port,) = instance.docker.ports(instance.container("alice")).values()
    return port


def test_it_has_no_capabilities(service: Service) -> None:
    status = status_of(service)
    capabilities = [value for name, value in status.items() if name.startswith("Cap")]
    assert capabilities == ["0" * 16] * 5
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    groups = service.machine.sh("id -G reconciler").split()
    assert sorted(status["Groups"].split()) == sorted(groups)
    assert "0" not in status["Uid"].split() + status["Gid"].split() + groups


def test_its_exposure_is_low(service: Service) -> None:
    judged = service.machine.sh(f"systemd-analyze security --no-pager {UNIT}")
    measured = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", judged)[1])
    print(f"exposure {measured}")
    assert measured <= EXPOSURE


def test_the_sandboxed_unit_can_do_only_what_it_needs(
    tried: tuple[dict[str, str], dict[str, str]],
) -> None:
    freely, hardened = tried
    # What fails without the unit would prove nothing about it.
    assert set(freely.values()) == {"done"}, freely
    assert {name for name in hardened if hardened[name] == "done"} == set(attempts.ALLOWED)
