"""The service from its install to its removal, and everything that may end it or its engine."""

import re
import signal
import subprocess
from typing import Any

import pytest

from scripts import processes
from tests.e2e.world import World, get
from tests.systemd.service import DESIRED, STATUSES, UNIT, WAITING, Service

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
# Far more than the daemon needs while it reads the shipped file, and less than for `_large`.
ROOM = 6 << 20


def runs(world: World) -> dict[str, tuple[str, str, str]]:
    """Each sandbox's container, its state, and since when it runs."""
    rows = [world.docker.inspect(name) for name in world.ids()]
    return {
        row["Name"]: (row["Id"], row["State"]["Status"], row["State"]["StartedAt"]) for row in rows
    }


def touched(events: list[str]) -> set[str]:
    """What a log says was done to sandboxes."""
    done = {"created", "started", "stopped", "paused", "resumed", "removed", "replaced"}
    return set(events) & {f"sandbox.{name}" for name in done}


def without(text: str, name: str) -> str:
    """The desired file without a record."""
    return re.sub(rf"^  {name}: .*\n", "", text, flags=re.MULTILINE)


# Installed, upgraded, removed


def test_the_documented_install(world: World, service: Service) -> None:
    shown = service.machine.sh(f"systemctl is-active {UNIT}; systemctl is-enabled {UNIT}")
    assert shown.split() == ["active", "enabled"]
    assert service.machine.sh("systemctl --failed --quiet --plain") == ""
    assert service.wait_text("7 of 7 sandboxes are as desired")
    assert "hello from" in get(world.row("alice")["exposed_urls"][0]["url"])
    stat = "stat -c '%n %U:%G %a' /etc/reconciler/*.yaml /var/lib/reconciler /run/reconciler"
    assert service.machine.sh(f"{stat} /proc/{service.pid}").splitlines() == [
        "/etc/reconciler/desired.yaml root:reconciler 640",
        "/etc/reconciler/reconciler.yaml root:reconciler 640",
        "/var/lib/reconciler reconciler:reconciler 700",
        "/run/reconciler reconciler:reconciler 700",
        f"/proc/{service.pid} reconciler:reconciler 555",
    ]


def test_the_documented_commands_find_the_daemon(world: World, service: Service) -> None:
    for user in ("root", "reconciler"):
        shown = service.follow_readme("Use", 1, user=user)
        assert re.search(r"^alice +running +RUNNING ", shown, re.MULTILINE), shown
    with pytest.raises(AssertionError, match="exit code"):
        service.follow_readme("Use", 1, user="nobody")


def test_an_upgrade_changes_no_sandbox(world: World, service: Service) -> None:
    before, cursor, pid = runs(world), service.machine.cursor(), service.pid
    service.follow_readme("Install", 1)
    assert service.pid != pid
    world.converge(*STATUSES)
    assert runs(world) == before
    assert touched(service.events(cursor)) == set()


def test_an_uninstall_leaves_the_sandboxes(world: World, service: Service) -> None:
    before = runs(world)
    service.machine.sh("mkdir /kept; cp -a /opt/reconciler /kept")
    try:
        service.follow_readme("Remove")
        assert service.machine.run(f"systemctl cat {UNIT}")[0] != 0
        assert service.machine.sh("systemctl --failed --quiet --plain") == ""
        assert runs(world) == before
    finally:
        service.machine.sh("cp -a /kept/reconciler /opt; rm -r /kept")
        service.machine.sh(
            f"cp /project/systemd/{UNIT} /etc/systemd/system; systemctl daemon-reload"
        )
        service.machine.sh(f"systemctl enable --now {UNIT}")
    world.converge(*STATUSES)
    assert runs(world) == before


# Ready


def test_it_is_ready_after_the_first_full_observation(world: World, service: Service) -> None:
    cursor, before, dockerd = service.machine.cursor(), runs(world), service.engine.pid
    processes.send(dockerd, signal.SIGSTOP)
    try:
        service.machine.sh(f"systemctl restart --no-block {UNIT}")
        service.wait_until(lambda: "store.opened" in service.events(cursor))
        service.wait_until(lambda: world.ask("/v1/ping"))
        # It answers, and cannot have seen anything.
        assert service.wait_text(WAITING)
        assert service.show("ActiveState") == "activating"
        assert "daemon.ready" not in service.events(cursor)
    finally:
        processes.send(dockerd, signal.SIGCONT)
    service.wait_until(lambda: service.show("ActiveState") == "active")
    assert "MISSING" not in world.statuses().values()
    assert not service.show("StatusText").startswith(WAITING)
    assert "daemon.waiting" not in service.events(cursor)
    world.converge(*STATUSES)
    assert runs(world) == before


def test_it_is_ready_without_an_engine_and_reports_the_wait(world: World, service: Service) -> None:
    before, cursor = world.ids(), service.machine.cursor()
    service.engine.terminate()
    service.machine.sh(f"systemctl restart {UNIT}")
    assert service.show("ActiveState") == "active"
    assert "daemon.waiting" in service.events(cursor)
    text = service.show("StatusText")
    assert text.startswith(WAITING)
    assert "check that the engine is running" in text
    service.engine.start()
    service.wait_text("7 of 7 sandboxes are as desired")
    world.wait_status(**STATUSES)
    assert world.ids() == before


# Reload


def test_a_reload_of_a_bad_file_fails_with_its_position(world: World, service: Service) -> None:
    before, cursor = runs(world), service.machine.cursor()
    service.write(f"{without(service.desired, 'dave')}\nsandboxes: [\n")
    code, said = service.machine.run(f"systemctl reload {UNIT}")
    assert code != 0
    assert f"systemctl status {UNIT}" in said
    service.machine.settle_journal()
    place = rf"{DESIRED}:\d+:\d+: \w+"
    assert re.search(rf"reconciler\[\d+\]: {place}", service.tail())
    rejected = service.machine.journal("-u", UNIT, "-p", "err", since=cursor)
    assert re.search(place, rejected[0]["ERROR"])
    assert service.show("ActiveState") == "active"
    assert world.statuses() == STATUSES
    assert runs(world) == before


def test_a_reload_applies_a_good_file(world: World, service: Service) -> None:
    pid = service.pid
    service.write(without(service.desired, "dave"))
    assert service.machine.run(f"systemctl reload {UNIT}") == (0, "")
    # It is taken in by then; what follows from it may take its time.
    assert world.rows().get("dave", {"desired": "deleted"})["desired"] == "deleted"
    world.converge(*(STATUSES.keys() - {"dave"}))
    assert service.pid == pid


# Ends


def test_a_stop_leaves_the_sandboxes_and_a_start_adopts_them(
    world: World, service: Service
) -> None:
    before, cursor, url = runs(world), service.machine.cursor(), _url(world)
    service.machine.sh(f"systemctl stop {UNIT}")
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    assert runs(world) == before
    assert "hello from" in get(url)
    service.machine.sh(f"systemctl start {UNIT}")
    world.converge(*STATUSES)
    assert runs(world) == before
    assert _url(world) == url
    assert touched(service.events(cursor)) == set()


def test_it_restarts_after_kill_9(world: World, service: Service) -> None:
    before, restarts = runs(world), int(service.show("NRestarts"))
    service.machine.sh(f"systemctl kill --signal=SIGKILL {UNIT}")
    service.write(without(service.desired, "dave"))
    service.wait_restarts(restarts + 1)
    world.converge(*(STATUSES.keys() - {"dave"}))
    assert runs(world).items() <= before.items()


def test_the_watchdog_restarts_a_hung_daemon(world: World, service: Service) -> None:
    service.reconfigure(WatchdogSec="8s")
    before, cursor = runs(world), service.machine.cursor()
    service.machine.sh(f"kill -STOP {service.pid}")
    service.write(without(service.desired, "dave"))
    service.wait_restarts(1)
    world.converge(*(STATUSES.keys() - {"dave"}))
    said = service.machine.journal("-u", UNIT, since=cursor)
    assert [entry for entry in said if "Watchdog timeout" in str(entry["MESSAGE"])]
    assert runs(world).items() <= before.items()


def test_it_restarts_after_the_oom_killer(world: World, service: Service) -> None:
    before = runs(world)
    service.reconfigure(MemoryMax=str(int(service.show("MemoryCurrent")) + ROOM))
    world.converge(*STATUSES)
    assert not _oom_kills(service)
    service.write(_large(service.desired))
    service.wait_until(lambda: _oom_kills(service))
    service.wait_until(lambda: int(service.show("NRestarts")) >= 2)
    assert runs(world) == before
    service.reconfigure(MemoryMax="1G")
    world.converge(*STATUSES)
    assert runs(world) == before


# The engine


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_it_survives_an_engine_stop(world: World, service: Service, end: str) -> None:
    ids, pid, cursor = world.ids(), service.pid, service.machine.cursor()
    getattr(service.engine, end)()
    assert service.wait_text("check that the engine is running").startswith(WAITING)
    service.write(without(service.desired, "dave"))
    service.engine.start()
    service.wait_text("6 of 6 sandboxes are as desired")
    world.converge(*(STATUSES.keys() - {"dave"}))
    # While the engine was down, any process of this machine may have taken a host port.
    moved = service.machine.journal("EVENT=port.replaced", since=cursor)
    lost_port = {world.name(entry["SANDBOX"]) for entry in moved}
    kept = {name: found for name, found in world.ids().items() if name not in lost_port}
    assert kept.items() <= ids.items(), service.machine.sh("journalctl -u reconciler -o cat -n 99")
    assert (service.pid, service.show("ActiveState")) == (pid, "active")


def test_live_restore_sandboxes_are_left_alone(world: World, service: Service) -> None:
    service.engine.restart(live_restore=True)
    world.converge(*STATUSES)
    before, cursor = runs(world), service.machine.cursor()
    service.engine.kill()
    service.wait_text(WAITING)
    service.engine.start()
    service.wait_text("7 of 7 sandboxes are as desired")
    world.converge(*STATUSES)
    assert runs(world) == before
    assert touched(service.events(cursor)) == set()


# The machine


@pytest.mark.parametrize("engine_first", [True, False])
def test_everything_runs_after_a_reboot(
    world: World, service: Service, *, engine_first: bool
) -> None:
    ids, volumes = world.ids(), world.volumes()
    service.machine.sh("systemctl reboot")
    service.machine.wait_off()
    service.engine.terminate()
    _boot(service, engine_first=engine_first)
    world.wait_status(**STATUSES)
    world.converge(*STATUSES)
    assert (world.ids(), world.volumes()) == (ids, volumes)


def test_everything_runs_after_a_power_cut(world: World, service: Service) -> None:
    world.run_in("alice", "echo precious > /workspace/file")
    ids, key = world.ids(), world.key("alice")
    service.machine.power_off()
    service.engine.kill()
    _boot(service, engine_first=True)
    world.wait_status(**STATUSES)
    world.converge(*STATUSES)
    assert world.ids() == ids
    assert (world.run_in("alice", "cat /workspace/file"), world.key("alice")) == ("precious", key)


def _boot(service: Service, *, engine_first: bool) -> None:
    """Boot, and have the engine start before the service or after it became ready."""
    if engine_first:
        service.engine.start()
    service.machine.boot()
    assert service.show("ActiveState") == "active"
    assert service.show("StatusText").startswith(WAITING) is not engine_first
    service.engine.start()


def _url(world: World) -> str:
    return str(world.row("alice")["exposed_urls"][0]["url"])


def _large(text: str) -> str:
    """The same file with a spec that nothing uses and that takes a lot of memory to read."""
    env = "".join(f"      VARIABLE_{number}: value\n" for number in range(40_000))
    return text.replace("\nspecs:\n", f"\nspecs:\n  unused:\n    image: none\n    env:\n{env}")


def _oom_kills(service: Service) -> list[str]:
    """The kernel's words about processes of the service that it killed for want of memory."""
    log: Any = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    group = service.machine.sh(f"systemctl show -P ControlGroup {UNIT}")
    return [line for line in log.splitlines() if "oom-kill:" in line and group in line]
