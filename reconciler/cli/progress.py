"""Show how far ``apply`` is: a live display on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final, Self

from rich.console import Console, Group
from rich.spinner import Spinner
from rich.text import Text

from reconciler.cli.output import say
from reconciler.core.text import inert

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.live import Live

_SHOWN: Final = 8
# Seconds: a full status is slow with hundreds of sandboxes.
_ROWS_EVERY: Final = 1.0


class Progress:
    """Write to stderr, so that stdout has only the answer.

    Args:
        read_rows: Returns the rows of ``status``; it is called at most once a second.
    """

    def __init__(self, read_rows: Callable[[], list[dict[str, Any]]]) -> None:
        self._read_rows = read_rows
        self._read_at = float("-inf")
        self._lines: dict[str, str] = {}
        self._printed: dict[str, str] = {}
        self._printed_count = ""
        self._live: Live | None = None
        if sys.stderr.isatty():
            from rich.live import Live  # noqa: PLC0415 - only for terminals

            self._live = Live(console=Console(stderr=True), transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, state: Mapping[str, Any]) -> None:
        """Show an answer of ``convergence``, and a line for each sandbox."""
        if time.monotonic() - self._read_at >= _ROWS_EVERY:
            self._lines = {row["name"]: status_line(row) for row in self._read_rows()}
            self._read_at = time.monotonic()
        count = f"{state['total'] - len(state['pending'])}/{state['total']} as desired"
        if state["engine_error"]:
            count = f"waiting for the engine: {state['engine_error']}"
        if self._live is not None:
            pending = state["pending"]
            lines = [f"  {name}: {self._lines.get(name, '')}" for name in pending[:_SHOWN]]
            if len(pending) > _SHOWN:
                lines.append(f"  and {len(pending) - _SHOWN} more")
            texts = [Text(inert(line), no_wrap=True, overflow="ellipsis") for line in lines]
            self._live.update(Group(Spinner("dots", Text(inert(count))), *texts))
            return
        for name, line in self._lines.items():
            if self._printed.get(name) != line:
                say(f"{name}: {line}", err=True)
        self._printed = self._lines
        if count != self._printed_count:
            self._printed_count = count
            say(count, err=True)


def status_line(row: Mapping[str, Any]) -> str:
    """Return a status with its reason, such as ``STARTING: not probed yet``."""
    reason = row["reason"] or row["next"]
    return f"{row['status']}: {reason}" if reason else str(row["status"])
