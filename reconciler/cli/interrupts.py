"""Ctrl-C while libraries load: those in C swallow it, or dress it up as an error of their own."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

INTERRUPTED: Final = 130


@contextmanager
def loading() -> Iterator[None]:
    """Until the block ends, Ctrl-C ends the process on the spot: nothing has begun yet."""
    former = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
