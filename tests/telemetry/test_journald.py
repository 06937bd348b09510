"""Entries as the journal's own reader would parse them."""

import fcntl
import importlib
import os
import socket
import struct
from pathlib import Path

import pytest

from reconciler.telemetry import journald as journald_module
from reconciler.telemetry.journald import Journal, encode, to_fields


def parse(payload):
    fields = {}
    while payload:
        line, _, rest = payload.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
        else:
            name, (size,) = line, struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        fields[name.decode()] = value.decode()
        payload = rest
    return fields


@pytest.fixture
def journald(datagrams):
    return datagrams


@pytest.fixture
def journal(journald):
    made = Journal(journald.getsockname())
    yield made
    made.close()


def event(**fields):
    return {"event": "sandbox.died", "level": "warning", "timestamp": "2026", **fields}


def test_a_line_becomes_fields():
    fields = to_fields(event(sandbox="alice", reconcile_id="r1", cause="exited", exit_code=137))
    assert fields == {
        "MESSAGE": "sandbox.died sandbox=alice reconcile_id=r1 cause=exited exit_code=137",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "reconciler",
        "EVENT": "sandbox.died",
        "SANDBOX": "alice",
        "RECONCILE_ID": "r1",
        "CAUSE": "exited",
        "EXIT_CODE": "137",
    }


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", "7"), ("info", "6"), ("error", "3"), ("critical", "2")]
)
def test_levels_are_priorities(level, priority):
    assert to_fields({"event": "x", "level": level})["PRIORITY"] == priority


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("exit-code", "EXIT_CODE"),
        ("_hidden", "HIDDEN"),
        ("2nd", "ND"),
        ("message", "FIELD_MESSAGE"),
        ("priority", "FIELD_PRIORITY"),
        ("ü", None),
        ("x" * 100, "X" * 64),
    ],
)
def test_field_names_are_valid_and_never_reserved(name, field):
    fields = to_fields(event(**{name: "value"}))
    added = set(fields) - {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "EVENT"}
    assert added == ({field} if field else set())
    assert fields["MESSAGE"].startswith("sandbox.died ")


def test_the_message_is_one_line_without_the_traceback():
    message = to_fields(event(error='a "b"\nc', traceback="Traceback"))["MESSAGE"]
    assert message == 'sandbox.died error="a \\"b\\"\\nc"'


def test_nested_values_are_json():
    assert to_fields(event(names=["a", "b"], ok=True))["NAMES"] == '["a", "b"]'


@pytest.mark.parametrize("value", ["", "plain", "a=b", "one\ntwo", "\n", "é\n\0", "x" * 5000])
def test_every_value_arrives_whole(journald, journal, value):
    assert journal.send({"MESSAGE": value, "AFTER": "1"})
    assert parse(journald.recv(65536)) == {"MESSAGE": value, "AFTER": "1"}


def test_a_lone_surrogate_does_not_stop_a_line():
    assert encode({"A": "\udc80"}) == b"A=?\n"


def test_a_large_entry_is_passed_as_a_sealed_file(journald, journal):
    fields = {"MESSAGE": "x" * 3_000_000, "LINES": "a\n" * 10}
    assert journal.send(fields)
    data, (file, *others), _, _ = socket.recv_fds(journald, 100, 2)
    try:
        assert data == b""
        assert others == []
        assert parse(os.pread(file, 4_000_000, 0)) == fields
        wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        assert fcntl.fcntl(file, fcntl.F_GET_SEALS) == wanted
    finally:
        os.close(file)


def test_it_works_without_memory_files(journald, monkeypatch):
    for name in ("F_ADD_SEALS", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_WRITE", "F_SEAL_SEAL"):
        monkeypatch.delattr(fcntl, name)
    for name in ("memfd_create", "MFD_CLOEXEC", "MFD_ALLOW_SEALING"):
        monkeypatch.delattr(os, name)
    journal = importlib.reload(journald_module).Journal(journald.getsockname())
    assert journal.send({"MESSAGE": "x" * 3_000_000})
    _, (file,), _, _ = socket.recv_fds(journald, 100, 2)
    assert parse(os.pread(file, 4_000_000, 0)) == {"MESSAGE": "x" * 3_000_000}
    assert Path(f"/proc/self/fd/{file}").readlink().is_relative_to("/dev/shm")
    os.close(file)
    journal.close()


def test_a_missing_journal_is_reported_and_a_late_one_found(tmp_path):
    path = tmp_path / "socket"
    journal = Journal(str(path))
    assert not journal.send({"MESSAGE": "x"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        assert journal.send({"MESSAGE": "x"})
    journal.close()


async def test_a_stuck_journal_never_blocks_the_loop(journald, journal):
    results = [journal.send({"MESSAGE": "x" * 1000}) for _ in range(5000)]
    assert results[0]
    assert not results[-1]
