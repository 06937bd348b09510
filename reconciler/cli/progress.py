"""How far a long convergence is: a live line on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Self

import click
from rich.console import Console
from rich.status import Status

if TYPE_CHECKING:
    from types import TracebackType

_SHOWN: Final = 5


class Progress:
    """Goes to stderr, so that stdout holds the answer alone."""

    def __init__(self) -> None:
        self._live = Status("", console=Console(stderr=True)) if sys.stderr.isatty() else None
        self._last = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, state: dict[str, Any]) -> None:
        """The state of a convergence."""
        pending = state["pending"]
        more = f" and {len(pending) - _SHOWN} more" if len(pending) > _SHOWN else ""
        done = state["total"] - len(pending)
        line = (
            f"{done}/{state['total']} as desired; waiting for {', '.join(pending[:_SHOWN])}{more}"
        )
        if line == self._last:
            return
        self._last = line
        if self._live is not None:
            self._live.update(line)
        else:
            click.echo(line, err=True)
