"""Runs on the machine, in a service or not: tries what the hardening forbids and what it allows.

Prints one JSON object: for each attempt `done`, or the name of the error. argv: the address of a
listener on this host that is not 127.0.0.1, as HOST:PORT.
"""

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "")


def _make_executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _set_user_id_bit() -> None:
    own = Path("/var/lib/reconciler/attempt")
    own.touch()
    try:
        own.chmod(0o4755)
    finally:
        own.unlink()


def _connect(host: str, port: str) -> None:
    with socket.create_connection((host, int(port)), 5):
        pass


def _ask_engine() -> None:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.connect("/var/run/docker.sock")


def _names(folder: str) -> None:
    if not list(Path(folder).iterdir()):
        raise FileNotFoundError(errno.ENOENT, folder)


FORBIDDEN: dict[str, Callable[[], object]] = {
    "write where anybody may": lambda: Path("/opt/anybody/file").write_text(""),
    "see what is in /tmp": lambda: Path("/tmp/seen").stat(),
    "see what is in /home": lambda: _names("/home"),
    "see another's process": lambda: Path("/proc/1").stat(),
    "see the kernel's settings": lambda: Path("/proc/sys/kernel").stat(),
    "make a user namespace": lambda: _checked(_LIBC.unshare(_CLONE_NEWUSER)),
    "make executable memory": _make_executable_memory,
    "set the user id bit": _set_user_id_bit,
    "make a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "raise its priority's limits": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
    "connect to another address": lambda: _connect(*sys.argv[1].rsplit(":", 1)),
}
ALLOWED: dict[str, Callable[[], object]] = {
    "write its state": lambda: Path("/var/lib/reconciler/attempt").unlink(missing_ok=True),
    "reach the engine": _ask_engine,
    "connect to a published port": lambda: _connect("127.0.0.1", sys.argv[2]),
}


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "done"


if __name__ == "__main__":
    print(json.dumps({name: _outcome(act) for name, act in {**FORBIDDEN, **ALLOWED}.items()}))
