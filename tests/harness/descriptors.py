"""Run out of file descriptors, in this process or in a daemon."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def none_left() -> Iterator[None]:
    """This process may open nothing in the block; what is open stays so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def at_most(pid: int, limit: int) -> Iterator[None]:
    """What a process opens in the block has a lower number than this; what is open stays so."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def highest(pid: int) -> int:
    """The highest descriptor of a process."""
    return max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())
