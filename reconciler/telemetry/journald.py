"""The journal's native protocol: each entry is one datagram of fields, or a sealed memory file.

docs/adr/0015-journald.md says why it is by hand.
"""

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
_PLAIN = re.compile(r"[^\s\"=\\]+")
_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
# F_ADD_SEALS of Linux, and its flags for seal, shrink, grow and write. Python that was built on an
# old system lacks the names.
_ADD_SEALS = 1033
_SEALS = 0x1 | 0x2 | 0x4 | 0x8


class Journal:
    """Sends entries to the journal without blocking.

    Args:
        path: The journal's socket; it need not exist, and may be replaced at any time.
    """

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send one entry; return whether the journal took it."""
        payload = encode(fields)
        try:
            self._socket.sendto(payload, self._path)
        except OSError as error:
            return error.errno in _TOO_LARGE and self._send_file(payload)
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send_file(self, payload: bytes) -> bool:
        try:
            file = _file_of(payload)
        except OSError:
            return False
        try:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))
            self._socket.sendmsg([b""], [rights], 0, self._path)
        except OSError:
            return False
        finally:
            os.close(file)
        return True


def encode(fields: Mapping[str, str]) -> bytes:
    """Serialise an entry: ``NAME=value``, or name, length and value where the value has lines."""
    payload = bytearray()
    for name, text in fields.items():
        value = text.encode(errors="replace")
        size = b"\n" + struct.pack("<Q", len(value)) if b"\n" in value else b"="
        payload += name.encode() + size + value + b"\n"
    return bytes(payload)


def to_fields(event: EventDict) -> dict[str, str]:
    """Convert a log line to journal fields.

    Args:
        event: A sanitised log line: plain JSON data, with ``level`` and ``event``.

    Returns:
        MESSAGE, PRIORITY, SYSLOG_IDENTIFIER and EVENT, and every other field under its upper-cased
        name: ``sandbox`` becomes SANDBOX. A field with one of those four names gets the prefix
        ``FIELD_``.
    """
    others = {name: _text(value) for name, value in event.items() if name not in _OMITTED}
    named = {_field_name(name): text for name, text in others.items()}
    words = (
        f"{name}={text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)}"
        for name, text in others.items()
        if name != "traceback"
    )
    return {
        "MESSAGE": " ".join((str(event["event"]), *words)),
        "PRIORITY": str(_PRIORITIES.get(str(event.get("level")), 6)),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "EVENT": str(event["event"]),
    } | {name: value for name, value in named.items() if name}


def _field_name(name: str) -> str:
    # The journal drops fields with other characters, and reserves a leading underscore.
    valid = re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_0123456789")
    return (f"FIELD_{valid}" if valid in _OWN else valid)[:_NAME_LIMIT]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _file_of(payload: bytes) -> int:
    can_seal = hasattr(os, "memfd_create")
    if can_seal:
        file = os.memfd_create(IDENTIFIER, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        # The journal takes a file without seals from this folder.
        with tempfile.TemporaryFile(dir="/dev/shm") as unlinked:
            file = os.dup(unlinked.fileno())
    rest = memoryview(payload)
    try:
        while rest:
            rest = rest[os.writev(file, [rest]) :]
        if can_seal:
            fcntl.fcntl(file, _ADD_SEALS, _SEALS)
    except OSError:
        os.close(file)
        raise
    return file
