"""``reload``: make the daemon read the desired file now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reconciler.cli.backend import running_daemon
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from reconciler.cli.context import Context


@click.command()
@click.pass_obj
def reload(context: Context) -> int:
    """Make the daemon read its desired file now.

    \b
      reconciler reload && echo in force

    \b
    The daemon notices an edit without this command; use it in scripts that need the result. It
    does not wait for the sandboxes; `reconciler apply` does.
    Exit codes: 0 in force, 1 rejected: the errors, as FILE:LINE:COL: message, or the deletions that
    await confirmation. The last good state stays in force.
    """
    with running_daemon(context.settings()) as daemon:
        if daemon is None:
            raise ReconcilerError("no daemon is running; start it with `reconciler run`")
        answer = daemon.reload(allow_mass_delete=False)
    from reconciler.cli.render import print_manifest_errors  # noqa: PLC0415 - slow to load

    print_manifest_errors(answer)
    return 1 if answer["errors"] or answer["awaiting_confirmation"] else 0
