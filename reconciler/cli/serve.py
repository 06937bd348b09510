"""``run``: the daemon, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli import options
from reconciler.cli.interrupts import loading

if TYPE_CHECKING:
    from reconciler.cli.context import Context


@click.command()
@options.desired
@click.option("--config", type=click.Path(path_type=Path), help="The settings file.")
@click.pass_obj
def run(context: Context, desired: Path | None, config: Path | None) -> int:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C.

    \b
      reconciler run --desired /etc/reconciler/desired.yaml
      RECONCILER_STATE_DIR=/tmp/try RECONCILER_INSTANCE=try reconciler run

    \b
    Sandboxes run on when it ends, and it takes up again where it was.
    Exit codes: 0 ended by a signal, 1 could not start or go on.
    """
    with loading():
        from reconciler import daemon  # noqa: PLC0415 - it loads the engine's client

    return daemon.run(lambda: context.reading(config).settings(desired=desired))


COMMANDS = (run,)
