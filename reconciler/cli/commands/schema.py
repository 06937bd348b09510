"""``schema``: print the JSON Schema of the desired file."""

from __future__ import annotations

import click

from reconciler.cli.interrupts import loading


@click.command()
def schema() -> int:
    """Print the JSON Schema of the desired file, for editors.

    \b
      reconciler schema > desired.schema.json

    \b
    Then make this the first line of the desired file:
      # yaml-language-server: $schema=desired.schema.json
    """
    with loading():
        from reconciler.manifest.json_schema import json_schema_text  # noqa: PLC0415 - slow to load

    click.echo(json_schema_text(), nl=False)
    return 0
