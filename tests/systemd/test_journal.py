"""The journal queries of the README find what they promise."""

from typing import Any

import pytest

from tests.e2e.world import World
from tests.systemd.service import STATUSES, UNIT, Service

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
INFO, WARNING, ERR = "6", "4", "3"
TOKEN = "hunter2-hunter2-hunter2"
TROUBLES = f"""
  homeless: {{spec: worker, image: "reconciler-nowhere:1"}}
  crashing:
    spec: worker
    command: [sh, -c, "echo the disk is gone; exit 3"]
    restart: {{backoff: 100ms, max_backoff: 500ms}}
  leaky:
    spec: worker
    env: {{API_TOKEN: {TOKEN}}}
    command: [sh, -c, 'env | grep API; echo "key: $OH_SESSION_API_KEYS_0"; exit 4']
"""


def test_a_sandbox_has_its_history_in_the_journal(world: World, service: Service) -> None:
    cursor = service.machine.cursor()
    service.write(service.desired.replace("\nsandboxes:\n", "\nsandboxes:\n  erin: {spec: web}\n"))
    world.converge("erin", *STATUSES)
    history = service.machine.journal("SANDBOX=erin", since=cursor)
    assert [entry["EVENT"] for entry in history] == [
        "record.added",
        "volume.created",
        "sandbox.created",
        "sandbox.started",
        "sandbox.healthy",
    ]
    assert {entry["PRIORITY"] for entry in history} == {INFO}
    assert {entry["_SYSTEMD_UNIT"] for entry in history} == {UNIT}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in history} == {"reconciler"}
    made = history[2]
    assert made["CAUSE"] == "the container does not exist"
    assert made["CONTAINER"] == world.name("erin")
    assert made["RECONCILE_ID"] == history[3]["RECONCILE_ID"]
    assert made["MESSAGE"].startswith("sandbox.created sandbox=erin ")


def test_priorities_select_problems(world: World, service: Service) -> None:
    cursor = service.machine.cursor()
    service.write(service.desired.rstrip("\n") + TROUBLES)
    died = service.wait_until(lambda: _died(service, cursor, "crashing", "leaky"))
    world.wait_error("homeless", "reconciler-nowhere:1")
    errors = service.wait_until(lambda: _errors(service, cursor, "crashing", "homeless"))
    loop, error = errors["crashing"], errors["homeless"]
    assert (loop["EVENT"], loop["IN_A_ROW"]) == ("sandbox.restart_loop", "5")
    assert error["EVENT"] == "sandbox.error"
    assert error["ERROR"] == "No such image: reconciler-nowhere:1: pull it, or correct `image`"
    assert died["crashing"]["PRIORITY"] == WARNING
    assert died["crashing"]["EXIT_CODE"] == "3"
    assert "the disk is gone" in died["crashing"]["LAST_LINES"]
    assert died["leaky"]["EXIT_CODE"] == "4"
    assert "OH_SESSION_API_KEYS_0=***" in died["leaky"]["LAST_LINES"]
    service.machine.settle_journal()
    everything = service.machine.sh("journalctl --quiet --all -o export")
    assert world.key("leaky") not in everything
    assert TOKEN not in everything


def _died(service: Service, cursor: str, *names: str) -> dict[str, Any]:
    """The first end of each of these sandboxes; empty until all have ended."""
    return _first_of_each(service.machine.journal("EVENT=sandbox.died", since=cursor), names)


def _errors(service: Service, cursor: str, *names: str) -> dict[str, Any]:
    """The first error of each of these sandboxes; empty until all have one."""
    return _first_of_each(service.machine.journal("-u", UNIT, "-p", "err", since=cursor), names)


def _first_of_each(entries: list[Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {entry.get("SANDBOX"): entry for entry in reversed(entries)}
    return found if found.keys() >= set(names) else {}


def test_normal_operation_logs_no_error(world: World, service: Service) -> None:
    cursor = service.machine.cursor()
    service.machine.sh(f"systemctl restart {UNIT}")
    world.converge(*STATUSES)
    assert service.machine.journal("-u", UNIT, "-p", "warning", since=cursor) == []
