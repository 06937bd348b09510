"""``gc``: list orphans, and remove those that are due."""

from __future__ import annotations

import click

from reconciler.cli.backend import backend
from reconciler.cli.context import Context, json_option, mass_delete_option
from reconciler.cli.output import say, say_json


@click.command()
@click.option("--dry-run", is_flag=True, help="Remove nothing; show what is removed when.")
@mass_delete_option
@json_option
@click.pass_obj
def gc(context: Context, *, dry_run: bool, allow_mass_delete: bool, as_json: bool) -> int:
    """List orphans, and remove those whose grace period is over.

    \b
      reconciler gc --dry-run
      reconciler gc --json | jq -r '.[] | select(.due) | .name'
      reconciler gc --allow-mass-delete

    \b
    An orphan is a container or a volume with this instance's label that no record wants. A
    container is due after gc_grace (a setting), a workspace after the retention that its spec asked
    for. Unused images are listed too. Objects without this instance's label are never touched.
    If orphans of too many sandboxes are due at once (settings brake_count and brake_percent), for
    example after the database was lost, the mass-delete guard blocks their removal until you run
    this with --allow-mass-delete.
    The command waits for the removals. Without a daemon, this process removes orphans and changes
    nothing else.
    Exit codes: 0 success, 1 something that is due could not be removed.
    """
    from reconciler.cli import render  # noqa: PLC0415 - slow to load

    with backend(context.settings(), quiet=as_json or not dry_run) as asked:
        rows = asked.garbage() if dry_run else asked.collect(allow_mass_delete=allow_mass_delete)
    if as_json:
        say_json(rows)
    elif rows:
        render.console().print(render.garbage_table(rows))
    else:
        click.echo("no orphans")
    failed = [row for row in rows if row["error"]]
    for row in failed:
        say(f"reconciler: {row['name']} was not removed: {row['error']}", err=True)
    return int(bool(failed))
