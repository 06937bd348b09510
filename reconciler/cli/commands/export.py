"""``export``: print the records in force as a desired file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reconciler.cli.backend import backend

if TYPE_CHECKING:
    from reconciler.cli.context import Context


@click.command()
@click.option("--show-secrets", is_flag=True, help="Print the values of secret variables too.")
@click.pass_obj
def export(context: Context, *, show_secrets: bool) -> int:
    """Print the records in force as a desired file.

    \b
      reconciler export --show-secrets > desired.yaml     if the file was lost
      reconciler export | diff - desired.yaml

    \b
    Without --show-secrets, variables with a name such as API_KEY have the value "***", so that the
    output does not declare the same sandboxes.
    """
    with backend(context.settings(), quiet=True) as asked:
        text = asked.export(secrets=show_secrets)
    click.echo(text, nl=False)
    return 0
