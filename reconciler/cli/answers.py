"""The commands that only ask: ``status``, ``logs``, ``events``; and ``gc``."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.cli import options
from reconciler.cli.backend import backend, running_daemon
from reconciler.cli.interrupts import loading
from reconciler.cli.output import say, say_json, say_raw

if TYPE_CHECKING:
    from reconciler.cli.context import Context
    from reconciler.settings import Settings

_FOLLOW_SECONDS: Final = 1.0
_PAGE: Final = 1000
# Colours are the one kind of escape sequence that many programs print; they are left out.
_COLOUR: Final = re.compile("\x1b\\[[0-9;:]*m")


@click.command()
@click.argument("name", required=False)
@options.as_json
@click.option("--watch", is_flag=True, help="Show it again each second, until Ctrl-C.")
@click.option("--show-secrets", is_flag=True, help="With --json: session keys, too.")
@click.pass_obj
def status(
    context: Context,
    name: str | None,
    *,
    as_json: bool,
    watch: bool,
    show_secrets: bool,
) -> int:
    """Show every sandbox, or one: what is desired, what is, and why.

    \b
      reconciler status
      reconciler status alice --json --show-secrets
      reconciler status --json | jq -r '.sandboxes[] | select(.status == "ERROR") | .name'

    \b
    STARTING  made or started, not yet well       RUNNING  runs, and its probe is good
    PAUSED    frozen                              STOPPED  not running, as desired
    MISSING   not made yet                        ERROR    see the reason; it is tried again
    UNKNOWN   the engine cannot be asked yet

    NAME is a sandbox's name or its container's.
    Exit codes: 0, or 1 where NAME is unknown or the engine cannot be asked.
    """
    from reconciler.cli import render, watching  # noqa: PLC0415 - slow to load

    settings = context.settings()
    if watch:
        watching.watch(settings, name, as_json=as_json, secrets=show_secrets)
    with backend(settings, quiet=as_json) as asked:
        answer = asked.status(name, secrets=show_secrets)
    if as_json:
        say_json(answer)
    else:
        render.print_status(answer)
    if name is not None and not answer["sandboxes"]:
        say(f"reconciler: {render.former_line(name, answer['former'])}", err=True)
        return 1
    return 0 if answer["engine"]["reachable"] else 1


@click.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Go on with lines as they come.")
@click.option(
    "--tail",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="How many of the last lines; --follow begins with them.",
)
@click.option("--raw", is_flag=True, help="Print the bytes as they came, escape sequences too.")
@click.pass_obj
def logs(context: Context, name: str, *, follow: bool, tail: int, raw: bool) -> int:
    """Show the log of a sandbox's container: both its outputs.

    \b
      reconciler logs alice --tail 20
      reconciler logs alice --follow --tail 1

    \b
    What the daemon did with it, and why, is told by `reconciler events alice`.
    Exit codes: 0, or 1 where there is no such sandbox, or it has no container.
    """
    settings = context.settings()
    with running_daemon(settings) as daemon:
        if daemon is None:
            asyncio.run(_print_logs(settings, name, tail=tail, follow=follow, raw=raw))
            return 0
        for line in daemon.logs(name, tail=tail, follow=follow):
            _print_log_line(line, raw=raw)
    return 0


def _print_log_line(line: str, *, raw: bool) -> None:
    if raw:
        say_raw(line.encode(errors="surrogateescape"))
    else:
        say(_COLOUR.sub("", line))


async def _print_logs(settings: Settings, name: str, *, tail: int, follow: bool, raw: bool) -> None:
    with loading():
        from reconciler.cli.local import rehearsal  # noqa: PLC0415 - it loads the engine's client
        from reconciler.control.queries import Queries  # noqa: PLC0415 - as above

    async with rehearsal(settings) as manager:
        async for line in await Queries(manager).logs(name, tail=tail, follow=follow):
            _print_log_line(line, raw=raw)


@click.command()
@click.argument("name", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on with entries as they come.")
@options.as_json
@click.pass_obj
def events(context: Context, name: str | None, *, follow: bool, as_json: bool) -> int:
    """Tell the story of all sandboxes, or of one: what was done, when and why.

    \b
      reconciler events alice
      reconciler events --follow
      reconciler events --json | jq '.[] | select(.event == "sandbox.died")'

    \b
    Oldest first, also of sandboxes that are gone. Times are local on a terminal, UTC elsewhere.
    With --follow, --json prints one object a line.
    """
    settings = context.settings()
    entries = _entries(settings, name, None)
    if as_json and not follow:
        say_json(entries)
        return 0
    last = _tell(entries, 0, as_json=as_json)
    while follow:
        time.sleep(_FOLLOW_SECONDS)
        last = _tell(_entries(settings, name, last), last, as_json=as_json)
    return 0


def _entries(settings: Settings, name: str | None, after: int | None) -> list[dict[str, Any]]:
    # A daemon may have started or ended since the last time.
    with backend(settings, quiet=True) as asked:
        return asked.events(name, after, _PAGE)


def _tell(entries: list[dict[str, Any]], last: int, *, as_json: bool) -> int:
    from reconciler.cli import render  # noqa: PLC0415 - slow to load

    for entry in entries:
        if as_json:
            say_json(entry, indent=None)
        else:
            say(render.event_line(entry))
    return int(entries[-1]["id"]) if entries else last


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go, when, and why.")
@options.allow_mass_delete
@options.as_json
@click.pass_obj
def gc(context: Context, *, dry_run: bool, allow_mass_delete: bool, as_json: bool) -> int:
    """Show what belongs to no record, and have what is due removed now.

    \b
      reconciler gc --dry-run
      reconciler gc --json | jq -r '.[] | select(.due) | .name'
      reconciler gc --allow-mass-delete

    \b
    What is not yet due goes when its grace is over (setting gc_grace), and a workspace when it has
    been kept as long as its spec asked for. Nothing that lacks this instance's label is touched.
    Where orphans of too many sandboxes would go at once (settings brake_count and brake_percent),
    as after the database was lost, none goes until --allow-mass-delete confirms it.
    The removals are waited for. Where no daemon runs, this process removes what belongs to no
    record, and changes nothing else.
    Exit codes: 0, or 1 where something that is due could not be removed.
    """
    from reconciler.cli import render  # noqa: PLC0415 - slow to load

    with backend(context.settings(), quiet=as_json or not dry_run) as asked:
        rows = asked.garbage() if dry_run else asked.collect(allow_mass_delete=allow_mass_delete)
    if as_json:
        say_json(rows)
    elif rows:
        render.console().print(render.garbage_table(rows))
    else:
        click.echo("nothing")
    left = [row for row in rows if row["error"]]
    for row in left:
        say(f"reconciler: not removed: {row['name']}: {row['error']}", err=True)
    return int(bool(left))


@click.command()
@click.argument("name")
@click.argument("volume", required=False)
@options.as_json
@click.pass_obj
def adopt(context: Context, name: str, volume: str | None, *, as_json: bool) -> int:
    """Use an existing volume as the workspace of a sandbox.

    \b
      reconciler adopt alice
      reconciler adopt alice alice-from-backup

    \b
    For a volume that this daemon did not make, such as one restored from a backup, which has no
    labels. NAME must be declared. VOLUME defaults to the name that the workspace would get. A
    container with the sandbox's own name and labels is taken over too. An adopted volume is never
    removed by the daemon.
    Exit codes: 0, or 1 where there is nothing to adopt, or the sandbox has another workspace.
    """
    with backend(context.settings(), quiet=True) as asked:
        answer = asked.adopt(name, volume)
    if as_json:
        say_json(answer)
    else:
        say(f"{name} has adopted {', '.join(answer['adopted'])}")
    return 0


COMMANDS = (status, logs, events, gc, adopt)
