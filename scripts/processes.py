"""Find and stop processes by pid, or by a private path on their command line."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL = 0.02
_CGROUPS = Path("/sys/fs/cgroup")


def wait_for(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll until the condition holds; False when it does not in time."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL)
    return True


def alive(pid: int) -> bool:
    """Tell whether the process runs; a zombie without threads does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX" or len(threads) > 1


def spawn(program: str, *arguments: str, log: Path) -> int:
    """Start a program that outlives us, in a new session."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    argv = [program, *arguments]
    return os.posix_spawnp(program, argv, os.environ, file_actions=files, setsid=True)


def reap(pid: int) -> bool:
    """Collect the exit status of our child; False while it runs."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def command_line(pid: int) -> str:
    """Read a process's command line; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (OSError, UnicodeDecodeError):
        return ""


def find(words: str, path: Path) -> list[int]:
    """List the processes with both the words and our private path on their command line."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208
    lines = ((pid, command_line(pid)) for pid in pids)
    return [pid for pid, line in lines if words in line and f"{path}/" in line]


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def end(pid: int, timeout: float) -> None:
    """Terminate a process, and kill it after the timeout."""
    send(pid, signal.SIGTERM)
    if not wait_for(lambda: not alive(pid), timeout):
        kill(pid)


def kill(pid: int) -> None:
    """Kill a process and wait for it to be gone."""
    send(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), 10)


def empty_cgroup(name: str) -> None:
    """Kill every process below a control group, version 1 or 2, frozen or not."""
    wait_for(lambda: not _kill_members(name), 10)


def remove_cgroup(name: str) -> None:
    """Remove an empty control group and those below it."""
    for folder in _folders(name):
        with suppress(OSError):
            folder.rmdir()


def _kill_members(name: str) -> bool:
    """Kill the current members; True if there were any."""
    members = set()
    for folder in _folders(name):
        # In version 1, a frozen process only handles SIGKILL once it is thawed.
        _write(folder / "freezer.state", "THAWED")
        _write(folder / "cgroup.freeze", "0")
        with suppress(OSError):
            members |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
    members = {pid for pid in members if alive(pid)}
    for pid in members:
        send(pid, signal.SIGKILL)
    return bool(members)


def _folders(name: str) -> list[Path]:
    """List the group's folders in every hierarchy, deepest first."""
    roots = [root for root in (_CGROUPS / name, *_CGROUPS.glob(f"*/{name}")) if root.is_dir()]
    return [Path(folder) for root in roots for folder, _, _ in os.walk(root, topdown=False)]


def _write(path: Path, text: str) -> None:
    with suppress(OSError):
        if path.exists():
            path.write_text(text)
