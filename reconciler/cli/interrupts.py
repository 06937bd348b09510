"""Ctrl-C while libraries load: C extensions swallow it, or raise another error instead."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

INTERRUPTED: Final = 130


@contextmanager
def loading() -> Iterator[None]:
    """Let Ctrl-C end the process at once within the block; it has done nothing yet."""
    former = signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
