"""``plan`` and ``apply``: what would be done, and doing it once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.cli import options
from reconciler.cli.backend import in_its_place, running_daemon
from reconciler.cli.output import say, say_json
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.cli.context import Context
    from reconciler.settings import Settings

_CHANGES_PENDING: Final = 2


@click.command()
@options.desired
@options.as_json
@click.pass_obj
def plan(context: Context, desired: Path | None, *, as_json: bool) -> int:
    """Print exactly what the daemon would do now, each step with its cause.

    \b
      reconciler plan                            of the file that is in force
      reconciler plan --desired new.yaml         of a file that is not yet
      reconciler plan --json | jq .changes       for programs

    \b
    A sandbox that is not as desired, and for which nothing can be done now, is listed with what it
    waits for. Nothing is changed. A daemon that runs need not be stopped.
    Exit codes: 0 in sync, 2 changes pending or waited for, 1 error.
    """
    settings = context.settings(desired=desired)
    answer = _planned(settings, desired)
    if as_json:
        say_json(answer)
    else:
        _print_plan(answer)
    if answer["errors"]:
        return 1
    return 0 if answer["in_sync"] else _CHANGES_PENDING


def _planned(settings: Settings, desired: Path | None) -> dict[str, Any]:
    with running_daemon(settings) as daemon:
        if daemon is not None and (desired is None or daemon.follows(desired)):
            return daemon.plan()
    return in_its_place(settings).plan()


def _print_plan(answer: dict[str, Any]) -> None:
    from reconciler.cli import render  # noqa: PLC0415 - slow to load

    for line in answer["errors"]:
        say(line, err=True)
    for line in render.plan_lines(answer):
        say(line)
    if answer["awaiting_confirmation"]:
        say(render.held_deletions_line(answer["awaiting_confirmation"]))
    if answer["in_sync"]:
        say("in sync")


@click.command()
@options.desired
@click.option(
    "--timeout",
    type=options.Duration(),
    default="5m",
    show_default=True,
    help="How long to wait: 30s, 5m, 1h.",
)
@options.allow_mass_delete
@options.as_json
@click.pass_obj
def apply(
    context: Context,
    desired: Path | None,
    timeout: float,
    *,
    allow_mass_delete: bool,
    as_json: bool,
) -> int:
    """Take the host to what the desired file says, once, and wait until it is so.

    \b
      reconciler apply
      reconciler apply --timeout 30m             a first start that pulls large images
      reconciler apply --allow-mass-delete       yes, delete them all

    \b
    A running daemon does it; without one, this process does, and ends.
    What is wrong in the file holds back only what it touches; the rest is done.
    Exit codes: 0 converged, 1 not: says which sandbox is not, and why.
    """
    settings = context.settings(desired=desired)
    from reconciler.cli import applying  # noqa: PLC0415 - slow to load

    with running_daemon(settings) as daemon:
        if daemon is None:
            found = applying.here(settings, timeout, allow_mass_delete=allow_mass_delete)
        elif desired is None or daemon.follows(desired):
            found = applying.through(daemon, timeout, allow_mass_delete=allow_mass_delete)
        else:
            raise ReconcilerError(
                f"the daemon here follows {daemon.desired}, not {desired}: edit that file, or"
                " stop it"
            )
    return applying.conclude(found, as_json=as_json)


COMMANDS = (plan, apply)
