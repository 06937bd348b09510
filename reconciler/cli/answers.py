"""The commands that only ask: ``status``, ``logs``, ``events``, ``gc``."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.cli import options, render
from reconciler.cli.backend import Local, Remote, backend, rehearsal
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from reconciler.cli.app import Context
    from reconciler.settings import Settings

_WATCH_SECONDS: Final = 1.0
_PAGE: Final = 1000


@click.command()
@click.argument("name", required=False)
@options.as_json
@click.option("--watch", is_flag=True, help="Show it again each second, until Ctrl-C.")
@click.option("--show-secrets", is_flag=True, help="Show session keys, too (JSON only).")
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
    STARTING  made or started, not yet well       RUNNING  runs, and its probe is good
    PAUSED    frozen                              STOPPED  not running, as desired
    MISSING   not made yet                        ERROR    see the reason; it is tried again
    Exit codes: 0, or 1 where NAME is unknown.
    """
    settings = context.settings()
    asked = backend(settings, quiet=as_json)
    if watch:
        _watch(asked, name)
    answer = asked.status(name, secrets=show_secrets)
    if as_json:
        render.print_json(answer)
    else:
        _show(answer)
    if name is not None and not answer["sandboxes"]:
        click.echo(f"reconciler: no sandbox is called {name}", err=True)
        return 1
    return 0


def _show(answer: dict[str, Any]) -> None:
    console = render.console()
    console.print(render.status_table(answer))
    for note in render.status_notes(answer):
        console.print(note, markup=False)


def _watch(asked: Remote | Local, name: str | None) -> None:
    from rich.live import Live  # noqa: PLC0415 - slow to load, and seldom used

    with Live(console=render.console(), auto_refresh=False, screen=True) as live:
        while True:
            live.update(render.status_table(asked.status(name, secrets=False)), refresh=True)
            time.sleep(_WATCH_SECONDS)


@click.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Go on with lines as they come.")
@click.option("--tail", default=100, show_default=True, help="How many of the last lines.")
@click.pass_obj
def logs(context: Context, name: str, *, follow: bool, tail: int) -> int:
    """Show the log of a sandbox's container."""
    settings = context.settings()
    remote = Remote.connect(settings)
    if remote is not None:
        for line in remote.logs(name, tail=tail, follow=follow):
            click.echo(line)
        return 0
    asyncio.run(_print_logs(settings, name, tail=tail, follow=follow))
    return 0


async def _print_logs(settings: Settings, name: str, *, tail: int, follow: bool) -> None:
    async with rehearsal(settings) as manager:
        await manager.read_manifest()
        await manager.observe()
        async for line in await manager.answers.logs(name, tail=tail, follow=follow):
            click.echo(line)


@click.command()
@click.argument("name", required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on with entries as they come.")
@options.as_json
@click.pass_obj
def events(context: Context, name: str | None, *, follow: bool, as_json: bool) -> int:
    """Tell the story of all sandboxes, or of one: what was done, when and why.

    Also of sandboxes that are gone. Oldest first.
    """
    asked = backend(context.settings(), quiet=True)
    entries = asked.events(name, None, _PAGE)
    if as_json and not follow:
        render.print_json(entries)
        return 0
    last = _tell(entries, 0, as_json=as_json)
    while follow:
        time.sleep(_WATCH_SECONDS)
        last = _tell(asked.events(name, last, _PAGE), last, as_json=as_json)
    return 0


def _tell(entries: list[dict[str, Any]], last: int, *, as_json: bool) -> int:
    for entry in entries:
        click.echo(render.json_line(entry) if as_json else render.event_line(entry))
    return int(entries[-1]["id"]) if entries else last


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go, when, and why.")
@options.as_json
@click.pass_obj
def gc(context: Context, *, dry_run: bool, as_json: bool) -> int:
    """Show what belongs to no record, and have what is due removed now.

    What is not yet due goes when its grace is over (setting gc_grace), and a workspace when it has
    been kept as long as its spec asked for. Nothing that lacks this instance's label is touched.
    """
    asked = backend(context.settings(), quiet=as_json)
    if isinstance(asked, Local) and not dry_run:
        raise ReconcilerError("no daemon runs here: start it, or ask with --dry-run")
    rows = asked.garbage() if dry_run or isinstance(asked, Local) else asked.collect()
    if as_json:
        render.print_json(rows)
    elif rows:
        render.console().print(render.garbage_table(rows))
    else:
        click.echo("nothing")
    return 0


COMMANDS = (status, logs, events, gc)
