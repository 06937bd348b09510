"""``plan``: show what the daemon would do now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from reconciler.cli.backend import local_backend, running_daemon
from reconciler.cli.context import Context, desired_option, json_option
from reconciler.cli.output import say, say_json

if TYPE_CHECKING:
    from pathlib import Path

_CHANGES_PENDING: Final = 2


@click.command()
@desired_option
@json_option
@click.pass_obj
def plan(context: Context, desired: Path | None, *, as_json: bool) -> int:
    """Show what the daemon would do now, and why.

    \b
      reconciler plan                            the file that is in force
      reconciler plan --desired new.yaml         a file that is not in force yet
      reconciler plan --json | jq .changes       for programs

    \b
    A sandbox that is not as desired, and for which nothing can be done now, is listed with what it
    waits for. Nothing is changed, and a running daemon is not disturbed.
    Exit codes: 0 in sync, 1 error, 2 changes pending or waiting.
    """
    settings = context.settings(desired=desired)
    answer = None
    with running_daemon(settings) as daemon:
        if daemon is not None and (desired is None or daemon.follows(desired)):
            answer = daemon.plan()
    if answer is None:
        answer = local_backend(settings).plan()
    if as_json:
        say_json(answer)
    else:
        from reconciler.cli import render  # noqa: PLC0415 - slow to load

        for line in answer["errors"]:
            say(line, err=True)
        for line in render.plan_lines(answer):
            say(line)
        if answer["awaiting_confirmation"]:
            say(render.held_deletions_line(answer["awaiting_confirmation"]))
        if answer["in_sync"]:
            say("in sync")
    if answer["errors"]:
        return 1
    return 0 if answer["in_sync"] else _CHANGES_PENDING
