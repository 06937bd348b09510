"""How far a long convergence is: a live picture on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Self

from rich.console import Console, Group
from rich.spinner import Spinner
from rich.text import Text

from reconciler.cli.output import say
from reconciler.core.text import inert

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from rich.live import Live

_SHOWN: Final = 8
Standing = dict[str, str]


class Progress:
    """Goes to stderr, so that stdout holds the answer alone."""

    def __init__(self) -> None:
        self._live = _live() if sys.stderr.isatty() else None
        self._said: Standing = {}
        self._count = ""

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

    def show(self, state: Mapping[str, Any], standing: Standing) -> None:
        """The state of a convergence, and how each sandbox stands."""
        if self._live is not None:
            self._live.update(_picture(state, standing))
            return
        self._say(standing)
        if (count := _count(state)) != self._count:
            self._count = count
            say(count, err=True)

    def _say(self, standing: Standing) -> None:
        for name, line in standing.items():
            if self._said.get(name) != line:
                say(f"{name}: {line}", err=True)
        self._said = dict(standing)


def standing_of(rows: list[dict[str, Any]]) -> Standing:
    """A few words on each sandbox, by name."""
    return {row["name"]: words_of(row) for row in rows}


def words_of(row: Mapping[str, Any]) -> str:
    """``STARTING: not probed yet``."""
    reason = row["reason"] or row["next"]
    return f"{row['status']}: {reason}" if reason else str(row["status"])


def _live() -> Live:
    from rich.live import Live  # noqa: PLC0415 - for terminals only

    return Live(console=Console(stderr=True), transient=True)


def _count(state: Mapping[str, Any]) -> str:
    if state["engine_error"]:
        return f"waiting for the engine: {state['engine_error']}"
    return f"{state['total'] - len(state['pending'])}/{state['total']} as desired"


def _picture(state: Mapping[str, Any], standing: Standing) -> Group:
    pending = state["pending"]
    lines = [f"  {name}: {standing.get(name, '')}" for name in pending[:_SHOWN]]
    if len(pending) > _SHOWN:
        lines.append(f"  and {len(pending) - _SHOWN} more")
    texts = [Text(inert(line), no_wrap=True, overflow="ellipsis") for line in lines]
    return Group(Spinner("dots", Text(inert(_count(state)))), *texts)
