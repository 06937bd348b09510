"""``adopt``: use an existing volume as a sandbox's workspace."""

from __future__ import annotations

import click

from reconciler.cli.backend import backend
from reconciler.cli.context import Context, json_option
from reconciler.cli.output import say, say_json


@click.command()
@click.argument("name")
@click.argument("volume", required=False)
@json_option
@click.pass_obj
def adopt(context: Context, name: str, volume: str | None, *, as_json: bool) -> int:
    """Use an existing volume as the workspace of a sandbox.

    \b
      reconciler adopt alice
      reconciler adopt alice alice-from-backup

    \b
    For a volume that this daemon did not create, such as one restored from a backup, which has no
    labels. NAME must be declared. VOLUME defaults to the name that the workspace would get. A
    container with the sandbox's name and labels is adopted too. The daemon never removes an adopted
    volume. After `volume.lost`, it accepts the new, empty workspace.
    Exit codes: 0 adopted, 1 there is nothing to adopt, or the sandbox has another workspace.
    """
    with backend(context.settings(), quiet=True) as asked:
        answer = asked.adopt(name, volume)
    if as_json:
        say_json(answer)
    else:
        say(f"{name} adopted {', '.join(answer['adopted'])}")
    return 0
