"""Datagrams to the service manager."""

import os
import socket

import pytest

from reconciler.telemetry.systemd import Notifier, watchdog_interval


@pytest.fixture
def manager(datagrams):
    return datagrams


@pytest.fixture
def notifier(manager):
    made = Notifier.from_environment({"NOTIFY_SOCKET": manager.getsockname()})
    yield made
    made.close()


def heard(manager):
    return manager.recv(65536).decode().split("\n")


@pytest.mark.parametrize(
    ("say", "expected"),
    [
        (lambda n: n.ready(), ["READY=1"]),
        (lambda n: n.ready("3 sandboxes"), ["READY=1", "STATUS=3 sandboxes"]),
        (lambda n: n.status("engine lost"), ["STATUS=engine lost"]),
        (lambda n: n.stopping(), ["STOPPING=1"]),
        (lambda n: n.stopping("bye"), ["STOPPING=1", "STATUS=bye"]),
        (lambda n: n.watchdog(), ["WATCHDOG=1"]),
    ],
)
def test_each_state_is_one_datagram(manager, notifier, say, expected):
    assert say(notifier)
    assert heard(manager) == expected


def test_a_status_cannot_contain_another_assignment(manager, notifier):
    notifier.status("bad file:\nMAINPID=1\r\n" + "x" * 9000)
    (line,) = heard(manager)
    assert line.startswith("STATUS=bad file: MAINPID=1 xxx")
    assert len(line) == len("STATUS=") + 512


def test_an_abstract_address_works():
    name = f"reconciler-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        notifier = Notifier(f"@{name}")
        assert notifier.ready()
        assert listener.recv(100) == b"READY=1"
        notifier.close()


@pytest.mark.parametrize("address", [None, "", "@", "vsock:2:1234", "relative/path"])
def test_an_unusable_address_disables_the_notifier(address):
    notifier = Notifier(address)
    assert not notifier.enabled
    assert not notifier.ready("x")


def test_a_manager_that_is_gone_is_no_error(tmp_path):
    notifier = Notifier(str(tmp_path / "nobody"))
    assert notifier.enabled
    assert not notifier.watchdog()
    notifier.close()


async def test_a_manager_that_does_not_read_never_blocks_the_loop(manager, notifier):
    results = [notifier.status("x" * 400) for _ in range(5000)]
    assert results[0]
    assert not results[-1]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdog_is_fed_twice_per_limit(environ, expected):
    assert watchdog_interval(environ) == expected
