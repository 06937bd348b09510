"""The commands about the desired file: ``check``, ``reload``, ``export``, ``schema``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli.backend import backend, running_daemon
from reconciler.cli.interrupts import loading
from reconciler.cli.output import say
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from reconciler.cli.context import Context


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def check(context: Context, path: Path | None) -> int:
    """Say whether the desired file and its env files are right. Asks no engine, changes nothing.

    \b
      reconciler check
      reconciler check new.yaml && mv new.yaml /etc/reconciler/desired.yaml

    \b
    PATH is a file, or a folder of *.yaml files.
    Exit codes: 0 valid, 1 invalid: everything that is wrong, as FILE:LINE:COL: message.
    """
    with loading():
        from reconciler.manifest.sync import defaults_of, validate  # noqa: PLC0415 - slow to load

    settings = context.settings()
    found = path or settings.desired
    loaded, diagnostics = asyncio.run(validate(found, defaults_of(settings)))
    for diagnostic in diagnostics:
        say(str(diagnostic), err=True)
    if diagnostics:
        return 1
    say(f"{found}: valid, {loaded.specs} specs, {len(loaded.records)} sandboxes")
    return 0


@click.command()
@click.pass_obj
def reload(context: Context) -> int:
    """Have the daemon read its desired file now, and say what it found.

    \b
      reconciler reload && echo in force

    \b
    An edit is seen without it; this is for scripts that want the answer. Nothing is waited for:
    that is what `reconciler apply` does.
    Exit codes: 0 in force, 1 with what is wrong as FILE:LINE:COL: message, or with the deletions
    that wait to be confirmed; the last good state stays in force.
    """
    with running_daemon(context.settings()) as daemon:
        if daemon is None:
            raise ReconcilerError("no daemon runs here: start it with `reconciler run`")
        answer = daemon.reload(allow_mass_delete=False)
    from reconciler.cli import render  # noqa: PLC0415 - slow to load

    render.complain(answer)
    return 1 if answer["errors"] or answer["awaiting_confirmation"] else 0


@click.command()
@click.option("--show-secrets", is_flag=True, help="Print the values of secret variables too.")
@click.pass_obj
def export(context: Context, *, show_secrets: bool) -> int:
    """Print the records that are in force as a desired file.

    \b
      reconciler export --show-secrets > desired.yaml     where the file was lost
      reconciler export | diff - desired.yaml

    \b
    Without --show-secrets, variables with a name such as API_KEY have the value "***": such a file
    does not declare the same sandboxes.
    """
    with backend(context.settings(), quiet=True) as asked:
        text = asked.export(secrets=show_secrets)
    click.echo(text, nl=False)
    return 0


@click.command()
def schema() -> int:
    """Print the JSON Schema of the desired file, for editors.

    \b
      reconciler schema > desired.schema.json
      # yaml-language-server: $schema=desired.schema.json     as the file's first line
    """
    with loading():
        from reconciler.manifest.json_schema import json_schema_text  # noqa: PLC0415 - slow to load

    click.echo(json_schema_text(), nl=False)
    return 0


COMMANDS = (check, reload, export, schema)
