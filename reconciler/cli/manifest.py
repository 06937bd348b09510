"""The commands about the desired file: ``check``, ``reload``, ``export``, ``schema``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli import render
from reconciler.cli.backend import Remote, backend
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from reconciler.cli.app import Context


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def check(context: Context, path: Path | None) -> int:
    """Say whether the desired file is right. Asks no engine and changes nothing.

    \b
    Exit codes: 0 valid, 1 invalid: everything that is wrong, as FILE:LINE:COL: message.
    """
    from reconciler.store.manifest import SpecDefaults, load  # noqa: PLC0415 - slow to load

    settings = context.settings()
    defaults = SpecDefaults(settings.mounts, settings.exposed_ports, settings.health_check_path)
    found = path or settings.desired
    loaded = load(found, defaults)
    for diagnostic in loaded.diagnostics:
        click.echo(str(diagnostic), err=True)
    if loaded.diagnostics:
        return 1
    click.echo(f"{found}: valid, {len(loaded.records)} sandboxes")
    return 0


@click.command()
@click.pass_obj
def reload(context: Context) -> int:
    """Have the daemon read its desired file now, and say what it found.

    \b
    An edit is seen without it; this is for scripts that want the answer.
    Exit codes: 0 in force, 1 with what is wrong as FILE:LINE:COL: message; the last good
    state stays in force.
    """
    remote = Remote.connect(context.settings())
    if remote is None:
        raise ReconcilerError("no daemon runs here: start it with `reconciler run`")
    answer = remote.reload(allow_mass_delete=False)
    for line in answer["errors"]:
        click.echo(line, err=True)
    if answer["awaiting_confirmation"]:
        click.echo(render.braked_line(answer["awaiting_confirmation"]), err=True)
    return 1 if answer["errors"] or answer["awaiting_confirmation"] else 0


@click.command()
@click.pass_obj
def export(context: Context) -> int:
    """Print the records that are in force as a desired file."""
    click.echo(backend(context.settings(), quiet=True).export(), nl=False)
    return 0


@click.command()
def schema() -> int:
    """Print the JSON Schema of the desired file, for editors."""
    from reconciler.store.schema import json_schema_text  # noqa: PLC0415 - slow to load

    click.echo(json_schema_text(), nl=False)
    return 0


COMMANDS = (check, reload, export, schema)
