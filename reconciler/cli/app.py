"""The command group, and the options of every command."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from reconciler import __version__
from reconciler.cli.commands.adopt import adopt
from reconciler.cli.commands.apply import apply
from reconciler.cli.commands.check import check
from reconciler.cli.commands.doctor import doctor
from reconciler.cli.commands.events import events
from reconciler.cli.commands.export import export
from reconciler.cli.commands.gc import gc
from reconciler.cli.commands.logs import logs
from reconciler.cli.commands.plan import plan
from reconciler.cli.commands.reload import reload
from reconciler.cli.commands.run import run
from reconciler.cli.commands.schema import schema
from reconciler.cli.commands.status import status
from reconciler.cli.context import Context

HELP = """Keep a Docker host's agent sandboxes as a YAML file declares them.

\b
  reconciler doctor                check prerequisites
  reconciler check                 validate the desired file
  reconciler plan                  show what would change
  reconciler apply                 reconcile once, and wait until the host matches the file
  reconciler run                   run the daemon (reconcile continuously)
  reconciler status --watch        show every sandbox, refreshed each second
  reconciler events alice          show what happened to alice, and why

Settings come from flags, then RECONCILER_* variables, then the settings file, then defaults.
Commands ask the running daemon over its control socket; without a daemon, they query the engine
directly.

\b
Exit codes: 0 success, 1 failure (reason on stderr), 2 usage error (`plan`: changes pending),
130 interrupted. COMMAND --help has examples."""


_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(help=HELP, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="reconciler")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The settings file. Default: RECONCILER_CONFIG.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="The folder of the database and the control socket. It selects the daemon.",
)
@click.option("--instance", help="The owner label on this daemon's containers and volumes.")
@click.option("--docker-host", help="The engine's address. Default: DOCKER_HOST.")
@click.pass_context
def group(
    context: click.Context,
    config: Path | None,
    state_dir: Path | None,
    instance: str | None,
    docker_host: str | None,
) -> None:
    """Store the options for the command; the help text is HELP."""
    flags = {"state_dir": state_dir, "instance": instance, "docker_host": docker_host}
    context.obj = Context(config, flags)


for command in (
    *(adopt, apply, check, doctor, events, export, gc),
    *(logs, plan, reload, run, schema, status),
):
    group.add_command(command)
