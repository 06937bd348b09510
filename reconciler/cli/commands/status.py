"""``status``: show every sandbox, or one."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from reconciler.cli.backend import backend
from reconciler.cli.context import Context, json_option
from reconciler.cli.output import say, say_json
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from reconciler.settings import Settings

_REFRESH_SECONDS: Final = 1.0


@click.command()
@click.argument("name", required=False)
@json_option
@click.option("--watch", is_flag=True, help="Refresh each second, until Ctrl-C.")
@click.option("--show-secrets", is_flag=True, help="With --json: print session keys too.")
@click.pass_obj
def status(
    context: Context,
    name: str | None,
    *,
    as_json: bool,
    watch: bool,
    show_secrets: bool,
) -> int:
    """Show the desired state and the status of every sandbox.

    \b
      reconciler status
      reconciler status alice --json --show-secrets
      reconciler status --json | jq -r '.sandboxes[] | select(.status == "ERROR") | .name'

    \b
    STARTING  created or started, not healthy yet   RUNNING  running, and its probe succeeds
    PAUSED    paused                                STOPPED  stopped, as desired
    MISSING   not created yet                       ERROR    see the reason; it is retried
    UNKNOWN   the engine is unreachable, and nothing was known before

    With NAME, the name of a sandbox or of its container, show only that one.
    Exit codes: 0 success, 1 NAME is unknown or the engine is unreachable.
    """
    from reconciler.cli import render  # noqa: PLC0415 - slow to load

    settings = context.settings()
    if watch:
        _watch(settings, name, as_json=as_json, secrets=show_secrets)
    with backend(settings, quiet=as_json) as asked:
        answer = asked.status(name, secrets=show_secrets)
    unknown = name is not None and not answer["sandboxes"]
    if as_json:
        say_json(answer)
    elif not unknown:
        render.print_status(answer)
    if name is not None and unknown:
        say(f"reconciler: {render.former_line(name, answer['former'])}", err=True)
        return 1
    return 0 if answer["engine"]["reachable"] else 1


def _watch(settings: Settings, name: str | None, *, as_json: bool, secrets: bool) -> NoReturn:
    """Refresh in place on a terminal; print one answer after another in a pipe."""
    from rich.console import Group  # noqa: PLC0415 - slow to load
    from rich.live import Live  # noqa: PLC0415

    from reconciler.cli import render  # noqa: PLC0415

    def ask() -> dict[str, Any]:
        # Reconnect each time: a daemon may have started or stopped since.
        with backend(settings, quiet=True) as asked:
            return asked.status(name, secrets=secrets)

    while as_json:
        say_json(ask(), indent=None)
        time.sleep(_REFRESH_SECONDS)
    while not sys.stdout.isatty():
        render.print_status(ask())
        time.sleep(_REFRESH_SECONDS)
    with Live(console=render.console(), auto_refresh=False, screen=True) as live:
        while True:
            try:
                answer = ask()
            except ReconcilerError as error:
                live.update(render.cell(f"reconciler: {error}"), refresh=True)
            else:
                notes = (render.cell(note) for note in render.status_notes(answer))
                live.update(Group(render.status_table(answer), *notes), refresh=True)
            time.sleep(_REFRESH_SECONDS)
