"""A wedged engine (lists work, changes hang), simulated by the proxy on its socket."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import World, box
from tests.harness import faults
from tests.harness.faults import Request
from tests.harness.proxy import FaultProxy

NAMES = [f"box-{number}" for number in range(6)]
ENDS = ("/stop", "/kill")


class ServiceManager:
    """Hears what a service tells systemd."""

    def __init__(self, address: Path) -> None:
        self.status = ""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()

    def _hear(self) -> None:
        while message := self._socket.recv(65536):
            for line in message.decode().splitlines():
                if line.startswith("STATUS="):
                    self.status = line.removeprefix("STATUS=")

    def close(self, address: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(address))
        self._thread.join()
        self._socket.close()


@pytest.fixture
def manager(world: World) -> Iterator[ServiceManager]:
    address = Path(world.daemon.runtime_dir) / "notify"
    heard = ServiceManager(address)
    world.daemon.env["NOTIFY_SOCKET"] = os.fspath(address)
    yield heard
    heard.close(address)


def ends_something(request: Request) -> bool:
    return request.method == "DELETE" or request.path.endswith(ENDS)


def test_a_wedged_engine(proxied: World, proxy: FaultProxy, manager: ServiceManager) -> None:
    daemon = proxied.daemon
    daemon.env |= {"RECONCILER_ENGINE_TIMEOUT": "3s", "RECONCILER_RESYNC_INTERVAL": "500ms"}
    proxied.start(**{name: box() for name in NAMES}, alice=box())
    proxy.fault(ends_something, faults.hang(), times=None)
    since = len(daemon.logs)
    proxied.declare(**{name: box("stopped") for name in NAMES}, alice=box())
    message = daemon.wait_event("engine.wedged", since=since)["error"]
    assert "hang: stop" in message

    # Work that does not hang continues.
    proxied.declare(
        **{name: box("stopped") for name in NAMES}, alice=box("paused"), late=box("stopped")
    )
    proxied.wait(lambda: proxied.statuses().get("alice") == "PAUSED")
    proxied.wait(lambda: proxied.statuses().get("late") == "STOPPED")

    # Every place where a user looks shows it.
    assert daemon.status()["engine"]["wedged"] == message
    assert message in daemon.cli("status").stdout
    doctor = daemon.cli("doctor")
    assert doctor.returncode == 1
    assert "restart it" in doctor.stdout
    proxied.wait(lambda: manager.status == message)
    asked = proxy.seen(lambda request: ends_something(request) and request.status is None)
    assert len(asked) <= len(NAMES) + 4
    assert len(daemon.events("engine.wedged", since=since)) == 1

    # A restart of the engine cuts what hung, and its event stream.
    proxy.clear()
    proxy.cut()
    daemon.wait_event("engine.unwedged", since=since)
    proxied.converge(*NAMES, "alice", "late")
    assert {proxied.state(name) for name in NAMES} == {"exited"}
    assert daemon.status()["engine"]["wedged"] is None
