"""The journal's native protocol: one datagram of fields an entry, or a sealed memory file."""

import array
import errno
import fcntl
import json
import os
import re
import socket
import struct
import tempfile
from collections.abc import Mapping
from typing import Any

from structlog.typing import EventDict

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "reconciler"

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_OWN = frozenset({"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "EVENT"})
_OMITTED = frozenset({"event", "level", "timestamp"})  # the journal has its own clock and priority
_NAME_LIMIT = 64
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
# F_ADD_SEALS of Linux, and its flags for seal, shrink, grow and write. Python that was built on an
# old system lacks the names.
_ADD_SEALS = 1033
_SEALS = 0x1 | 0x2 | 0x4 | 0x8


class Journal:
    """Sends entries to the journal without blocking.

    Args:
        path: The journal's socket; it may come, go and come back.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def send(self, fields: Mapping[str, str]) -> bool:
        """Sends one entry; returns whether the journal took it."""
        payload = encode(fields)
        try:
            self._send(payload)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Gives the socket back."""
        self._socket.close()

    def _send(self, payload: bytes) -> None:
        try:
            self._socket.sendto(payload, self._path)
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
            self._send_file(payload)

    def _send_file(self, payload: bytes) -> None:
        file = _file_of(payload)
        try:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))
            self._socket.sendmsg([b""], [rights], 0, self._path)
        finally:
            os.close(file)


def encode(fields: Mapping[str, str]) -> bytes:
    """Serialises an entry: ``NAME=value``, or name, length and value where the value has lines."""
    return b"".join(_encode_field(name.encode(), value) for name, value in fields.items())


def to_fields(event: EventDict) -> dict[str, str]:
    """Turns a log line into journal fields.

    Args:
        event: A sanitised log line: plain JSON data, with ``level`` and ``event``.

    Returns:
        MESSAGE, PRIORITY, SYSLOG_IDENTIFIER and EVENT, and every further field by its upper-cased
        name: ``sandbox`` becomes SANDBOX. A name that one of those four has gets ``FIELD_`` before.
    """
    others = {name: value for name, value in event.items() if name not in _OMITTED}
    named = {_field_name(name): _text(value) for name, value in others.items()}
    return {
        "MESSAGE": _message(str(event["event"]), others),
        "PRIORITY": str(_PRIORITIES.get(str(event.get("level")), 6)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "EVENT": str(event["event"]),
    } | {name: value for name, value in named.items() if name}


def _encode_field(name: bytes, text: str) -> bytes:
    value = text.encode(errors="replace")
    if b"\n" in value:
        return name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name + b"=" + value + b"\n"


def _field_name(name: str) -> str:
    # The journal drops fields with other characters, and keeps a leading underscore for itself.
    valid = re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789")
    return (f"FIELD_{valid}" if valid in _OWN else valid)[:_NAME_LIMIT]


def _message(event: str, fields: Mapping[str, Any]) -> str:
    shown = (f"{name}={_word(value)}" for name, value in fields.items() if name != "traceback")
    return " ".join((event, *shown))


def _word(value: Any) -> str:
    text = _text(value)
    return text if re.fullmatch(r"[^\s\"=\\]+", text) else json.dumps(text, ensure_ascii=False)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _file_of(payload: bytes) -> int:
    can_seal = hasattr(os, "memfd_create")
    file = _memory_file() if can_seal else _unlinked_file()
    try:
        _fill(file, memoryview(payload))
        if can_seal:
            fcntl.fcntl(file, _ADD_SEALS, _SEALS)
    except OSError:
        os.close(file)
        raise
    return file


def _memory_file() -> int:
    return os.memfd_create(IDENTIFIER, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _unlinked_file() -> int:
    # The journal takes a file without seals from this folder.
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        return os.dup(file.fileno())


def _fill(file: int, rest: memoryview) -> None:
    while rest:
        rest = rest[os.writev(file, [rest]) :]
