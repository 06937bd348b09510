"""Unix sockets with paths that are longer than a socket address can hold."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A unix address has 108 bytes.
_LONGEST_PATH: Final = 100


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Return a name of the socket that fits into an address, valid while the block runs."""
    folder = -1
    if len(os.fsencode(path)) > _LONGEST_PATH:
        with suppress(OSError):
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield str(path) if folder < 0 else f"/proc/self/fd/{folder}/{path.name}"
    finally:
        if folder >= 0:
            os.close(folder)
