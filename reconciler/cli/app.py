"""The group of all commands, and the options that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from reconciler import __version__
from reconciler.cli import answers, converge, doctor, manifest, serve
from reconciler.cli.context import Context

HELP = """Keep a Docker host's agent sandboxes exactly as a YAML file says.

\b
  reconciler doctor                is all here that is needed?
  reconciler check                 is the desired file right?
  reconciler plan                  what would be done?
  reconciler apply                 do it once, and wait until it is so
  reconciler run                   do it for ever: the daemon
  reconciler status --watch        how are things?
  reconciler events alice          what happened to alice, and why?

Settings come from flags, then RECONCILER_* variables, then the settings file, then defaults.
Commands ask the running daemon over its control socket, and look for themselves where none runs.

\b
Exit codes: 0 it is so, 1 it is not (says why on stderr), 2 wrong usage; `plan` has 2 for changes
pending; 130 after Ctrl-C. COMMAND --help has examples."""


_SHOWN: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(help=HELP, context_settings=_SHOWN)
@click.version_option(__version__, prog_name="reconciler")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The settings file; RECONCILER_CONFIG says it too.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Where the database and the control socket are: which daemon is meant.",
)
@click.option("--instance", help="Whose sandboxes: what this daemon's labels say.")
@click.option("--docker-host", help="The engine; DOCKER_HOST says it too.")
@click.pass_context
def group(
    context: click.Context,
    config: Path | None,
    state_dir: Path | None,
    instance: str | None,
    docker_host: str | None,
) -> None:
    """See HELP."""
    flags = {"state_dir": state_dir, "instance": instance, "docker_host": docker_host}
    context.obj = Context(config, flags)


for module in (serve, converge, manifest, answers, doctor):
    for command in module.COMMANDS:
        group.add_command(command)
