"""One daemon for each instance on an engine, as far as one host can tell.

The lock is an abstract unix socket: it needs no folder that several users could write to, and the
kernel drops it when its holder dies. Any process can take its name, so a holder counts only if it
could reach the engine itself. Daemons in other network namespaces, on other hosts, or with another
address of the same engine do not see the lock: observe/owners.py is for them.

The name says what the engine's socket is, not what its path is: containers that share a network
namespace have different engines at the same path, or one engine at different paths.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

from reconciler.core.errors import LockedError

_PEER: Final = struct.Struct("3i")
_PATIENCE: Final = 1.0
_BACKLOG: Final = 4096


class _Peer(NamedTuple):
    pid: int
    uid: int
    gid: int


class EngineLock:
    """Holds the engine for an instance while the ``with`` block runs.

    Args:
        engine: Its address, as text: the path of a socket, or a URL.
        instance: The instance.

    Attributes:
        trouble: Why another daemon could not be kept off; empty where it is.
    """

    def __init__(self, engine: str, instance: str) -> None:
        is_path = engine.startswith("/")
        self._path = Path(os.path.realpath(engine)) if is_path else None
        self._engine = str(self._path or engine)
        self._instance = instance
        self._held: list[socket.socket] = []
        self.trouble = ""

    def __enter__(self) -> Self:
        """Take the lock: one abstract socket for each way to tell that the engine is the same.

        Raises:
            LockedError: another daemon holds it; the message names it.
        """
        try:
            for key in self._keys():
                self._take(key)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        while self._held:
            self._held.pop().close()

    def _keys(self) -> list[str]:
        """Say what the engine's socket is: its inode, and its entry in the nearest folder.

        A bind mount of the socket has another folder, and a restarted engine makes another inode.
        """
        if self._path is None:
            return [self._engine]
        keys = []
        with suppress(OSError):
            found = self._path.stat()
            # With the time, since some file systems soon give a removed file's number to another.
            keys.append(f"inode {found.st_dev} {found.st_ino} {found.st_mtime_ns}")
        for folder in self._path.parents:
            with suppress(OSError):
                found = folder.stat()
                entry = self._path.relative_to(folder)
                return [*keys, f"entry {found.st_dev} {found.st_ino} {entry}"]
        return keys or [self._engine]

    def _take(self, key: str) -> None:
        digest = hashlib.sha256(f"{key}\n{self._instance}".encode()).hexdigest()
        name = f"\0reconciler.{digest[:32]}"
        held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            held.bind(name)
            held.listen(_BACKLOG)
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE:
                self.trouble = f"no lock for {self._engine}: {error.strerror}"
                return
        else:
            self._held.append(held)
            return
        peer = _holder(name)
        if peer is None or not self._may_reach(peer):
            who = f"a process of user {peer.uid}" if peer else "a process that does not answer"
            self.trouble = (
                f"{who}, which is no daemon on {self._engine}, holds the name of this daemon's "
                "lock: end it"
            )
            return
        # The kernel gives 0 for a process that this PID namespace does not show.
        who = f"the process with pid {peer.pid}" if peer.pid else "a process in another container"
        raise LockedError(
            f"{who} works with instance {self._instance!r} on "
            f"{self._engine}: stop it first, or set another `instance` for this one"
        )

    def _may_reach(self, peer: _Peer) -> bool:
        """Whether the process could be a daemon on this engine: it may write to its socket."""
        if peer.uid in {0, os.geteuid()}:
            return True
        if self._path is None:
            return False
        try:
            found = self._path.stat()
        except OSError:
            return False
        if found.st_uid == peer.uid or found.st_mode & stat.S_IWOTH:
            return True
        groups = {peer.gid}
        with suppress(OSError, ValueError):
            for line in Path(f"/proc/{peer.pid}/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("Groups:"):
                    groups |= set(map(int, line.split()[1:]))
        return bool(found.st_mode & stat.S_IWGRP) and found.st_gid in groups


def _holder(name: str) -> _Peer | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.settimeout(_PATIENCE)
        try:
            asking.connect(name)
            raw = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        except OSError:
            return None
    return _Peer(*_PEER.unpack(raw))
