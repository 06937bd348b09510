"""``run``: run the daemon in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from reconciler.cli.context import Context, desired_option
from reconciler.cli.interrupts import loading


@click.command()
@desired_option
@click.option("--config", type=click.Path(path_type=Path), help="The settings file.")
@click.pass_obj
def run(context: Context, desired: Path | None, config: Path | None) -> int:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C.

    \b
      reconciler run --desired /etc/reconciler/desired.yaml
      RECONCILER_STATE_DIR=/tmp/try RECONCILER_INSTANCE=try reconciler run

    \b
    The sandboxes keep running after the daemon stops; its next start continues where it left off.
    Exit codes: 0 stopped by a signal, 1 failed (reason in the log).
    """
    with loading():
        from reconciler import daemon  # noqa: PLC0415 - loads the engine's client

    return daemon.run(lambda: context.with_config(config).settings(desired=desired))
