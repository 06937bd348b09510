"""A file system that can hang or die: a small FUSE server without a library."""

import contextlib
import ctypes
import os
import select
import struct
import subprocess
import threading
from pathlib import Path
from typing import Self

_HEADER = struct.Struct("<IIQQIIII")
_REPLY = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ = 1, 2, 3, 14, 15
_STATFS, _RELEASE, _FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR = 17, 18, 25, 26, 27, 28, 29
_ACCESS, _BATCH_FORGET = 34, 42
_SILENT = {_FORGET, _BATCH_FORGET}
_ENOENT, _ENOSYS = 2, 38
_LIBC = ctypes.CDLL(None, use_errno=True)


class HangingMount:
    """The files ``files``, by name, at ``path``. While ``hanging``, it answers nothing.

    ``die`` ends the server as a crash does: every later call on the path fails with ENOTCONN.
    """

    def __init__(self, path: Path, **files: str) -> None:
        self.path = path
        self.files = {name.replace("_", "."): text.encode() for name, text in files.items()}
        self._answering = threading.Event()
        self._answering.set()
        self._dead = threading.Event()
        self._wake = os.eventfd(0)

    def __enter__(self) -> Self:
        self.path.mkdir(exist_ok=True)
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _LIBC.mount(b"test", bytes(self.path), b"fuse", 0, options.encode()) < 0:
            raise OSError(ctypes.get_errno(), "mount")
        self._server = threading.Thread(target=self._serve, args=(device,), daemon=True)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        subprocess.run(["umount", "-l", self.path], check=False, capture_output=True)

    def hang(self) -> None:
        self._answering.clear()

    def resume(self) -> None:
        self._answering.set()

    def die(self) -> None:
        if not self._dead.is_set():
            self._dead.set()
            self._answering.set()
            os.eventfd_write(self._wake, 1)
            self._server.join()
            os.close(self._wake)

    def _serve(self, device: int) -> None:
        while not self._dead.is_set():
            readable, _, _ = select.select([device, self._wake], [], [])
            # Read nothing while hanging: a caller whose request was read ignores even SIGKILL.
            self._answering.wait()
            if device in readable and not self._dead.is_set():
                self._serve_one(device)
        os.close(device)

    def _serve_one(self, device: int) -> None:
        request = os.read(device, 1 << 20)
        _, opcode, unique, node, *_ = _HEADER.unpack_from(request)
        if opcode in _SILENT:
            return
        error, answer = self._answer(opcode, node, request[_HEADER.size :])
        reply = _REPLY.pack(_REPLY.size + len(answer), -error, unique) + answer
        # It fails if the caller has given up.
        with contextlib.suppress(OSError):
            os.write(device, reply)

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:  # noqa: PLR0911 - a table
        names = list(self.files)
        if opcode == _INIT:
            return 0, struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, 1 << 16, 1, 0, 0, 0)
        if opcode == _LOOKUP:
            name = body.rstrip(b"\0").decode()
            if name not in self.files:
                return _ENOENT, b""
            number = names.index(name) + 2
            return 0, struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + self._attributes(number)
        if opcode == _GETATTR:
            return 0, struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if opcode in {_OPEN, _OPENDIR}:
            return 0, struct.pack("<QII", 0, 1, 0)  # direct I/O: nothing is cached
        if opcode == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return 0, self.files[names[node - 2]][offset : offset + size]
        if opcode == _READDIR:
            _, offset, _ = struct.unpack_from("<QQI", body)
            return 0, b"" if offset else self._entries(names)
        if opcode == _STATFS:
            return 0, bytes(80)
        if opcode in {_RELEASE, _RELEASEDIR, _FLUSH, _ACCESS}:
            return 0, b""
        return _ENOSYS, b""

    def _attributes(self, number: int) -> bytes:
        text = b"" if number == 1 else self.files[list(self.files)[number - 2]]
        mode = 0o40755 if number == 1 else 0o100644
        return _ATTR.pack(number, len(text), 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _entries(self, names: list[str]) -> bytes:
        entries = b""
        for number, name in enumerate(names, start=2):
            raw = name.encode()
            entry = struct.pack("<QQII", number, number - 1, len(raw), 8) + raw
            entries += entry.ljust(-(-len(entry) // 8) * 8, b"\0")
        return entries
