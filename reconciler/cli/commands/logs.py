"""``logs``: show the log of a sandbox's container."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import click

from reconciler.cli.backend import backend
from reconciler.cli.output import say, say_raw

if TYPE_CHECKING:
    from reconciler.cli.context import Context

# Many programs print colours; other escape sequences are shown as text.
_COLOUR: Final = re.compile("\x1b\\[[0-9;:]*m")


@click.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Keep printing new lines, until Ctrl-C.")
@click.option(
    "--tail",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="How many of the last lines to print; --follow starts with them.",
)
@click.option("--raw", is_flag=True, help="Print the bytes unchanged, escape sequences included.")
@click.pass_obj
def logs(context: Context, name: str, *, follow: bool, tail: int, raw: bool) -> int:
    """Show the log of a sandbox's container, stdout and stderr.

    \b
      reconciler logs alice --tail 20
      reconciler logs alice --follow --tail 1

    \b
    `reconciler events alice` shows what the daemon did with the sandbox, and why.
    Exit codes: 0 success, 1 there is no such sandbox, or it has no container.
    """

    def print_line(line: str) -> None:
        if raw:
            say_raw(line.encode(errors="surrogateescape"))
        else:
            say(_COLOUR.sub("", line))

    with backend(context.settings(), quiet=True) as asked:
        asked.logs(name, tail=tail, follow=follow, on_line=print_line)
    return 0
