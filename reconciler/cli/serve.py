"""``run``: the daemon, in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reconciler.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.cli.app import Context


@click.command()
@options.desired
@click.pass_obj
def run(context: Context, desired: Path | None) -> int:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C.

    \b
    Sandboxes run on when it ends, and it takes up again where it was.
    Exit codes: 0 ended by a signal, 1 could not start or go on.
    """
    from reconciler import daemon  # noqa: PLC0415 - it loads the engine's client

    return daemon.run(context.settings(desired=desired))


COMMANDS = (run,)
