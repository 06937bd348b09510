"""``events``: show the event history."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from reconciler.cli.backend import backend
from reconciler.cli.context import Context, json_option
from reconciler.cli.output import say, say_json

_POLL_SECONDS: Final = 1.0
_PAGE: Final = 1000


@click.command()
@click.argument("name", required=False)
@click.option("--follow", "-f", is_flag=True, help="Keep printing new events, until Ctrl-C.")
@json_option
@click.pass_obj
def events(context: Context, name: str | None, *, follow: bool, as_json: bool) -> int:
    """Show the event history of all sandboxes, or of one.

    \b
      reconciler events alice
      reconciler events --follow
      reconciler events --json | jq '.[] | select(.event == "sandbox.died")'

    \b
    Each event has a time, a cause and details. The oldest comes first, and deleted sandboxes are
    included. Times are local on a terminal, UTC elsewhere. With --follow, --json prints one object
    a line.
    """
    settings = context.settings()

    def read(after: int | None) -> list[dict[str, Any]]:
        # Reconnect each time: a daemon may have started or stopped since.
        with backend(settings, quiet=True) as asked:
            return asked.events(name, after, _PAGE)

    entries = read(None)
    if as_json and not follow:
        say_json(entries)
        return 0
    from reconciler.cli.render import event_line  # noqa: PLC0415 - slow to load

    last = 0
    while True:
        for entry in entries:
            if as_json:
                say_json(entry, indent=None)
            else:
                say(event_line(entry))
            last = int(entry["id"])
        if not follow:
            return 0
        time.sleep(_POLL_SECONDS)
        entries = read(last)
