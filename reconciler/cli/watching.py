"""``status --watch``: the same picture each second, whoever comes and goes meanwhile."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

from rich.console import Group, RenderableType
from rich.live import Live

from reconciler.cli import render
from reconciler.cli.backend import backend
from reconciler.cli.output import say_json
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.settings import Settings

_SECONDS: Final = 1.0


def watch(settings: Settings, name: str | None, *, as_json: bool, secrets: bool) -> NoReturn:
    """Until Ctrl-C: in place on a terminal, one after the other when piped."""

    def ask() -> dict[str, Any]:
        # A daemon may have started or ended since the last time.
        with backend(settings, quiet=True) as asked:
            return asked.status(name, secrets=secrets)

    if as_json:
        while True:
            say_json(ask(), indent=None)
            time.sleep(_SECONDS)
    if not sys.stdout.isatty():
        while True:
            render.print_status(ask())
            time.sleep(_SECONDS)
    with Live(console=render.console(), auto_refresh=False, screen=True) as live:
        while True:
            live.update(_picture(ask), refresh=True)
            time.sleep(_SECONDS)


def _picture(ask: Callable[[], dict[str, Any]]) -> RenderableType:
    try:
        answer = ask()
    except ReconcilerError as error:
        return render.cell(f"reconciler: {error}")
    notes = (render.cell(note) for note in render.status_notes(answer))
    return Group(render.status_table(answer), *notes)
