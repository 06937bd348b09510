"""``plan`` and ``apply``: what would be done, and doing it once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.cli import options, render
from reconciler.cli.backend import Local, Remote
from reconciler.cli.progress import Progress
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from reconciler.cli.app import Context
    from reconciler.loop.manager import Manager
    from reconciler.settings import Settings

_POLL_SECONDS: Final = 0.2
_CHANGES_PENDING: Final = 2


@click.command()
@options.desired
@options.as_json
@click.pass_obj
def plan(context: Context, desired: Path | None, *, as_json: bool) -> int:
    """Print exactly what the daemon would do now, each step with its cause.

    \b
    Exit codes: 0 in sync, 2 changes pending, 1 error.
    """
    settings = context.settings(desired=desired)
    remote = Remote.connect(settings)
    same = remote is not None and (desired is None or _same(remote, settings))
    answer = remote.plan() if remote is not None and same else Local(settings).plan()
    if as_json:
        render.print_json(answer)
    else:
        _print_plan(answer)
    if answer["errors"]:
        return 1
    return 0 if answer["in_sync"] else _CHANGES_PENDING


def _print_plan(answer: dict[str, Any]) -> None:
    for line in answer["errors"]:
        click.echo(line, err=True)
    if answer["awaiting_confirmation"]:
        click.echo(render.braked_line(answer["awaiting_confirmation"]), err=True)
    lines = render.plan_lines(answer)
    click.echo("\n".join(lines) if lines else "in sync")


@click.command()
@options.desired
@click.option(
    "--timeout",
    type=options.Duration(),
    default="5m",
    show_default=True,
    help="How long to wait.",
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
    A running daemon does it; without one, this process does, and ends.
    Exit codes: 0 converged, 1 not: says which sandbox is not, and why.
    """
    settings = context.settings(desired=desired)
    remote = Remote.connect(settings)
    if remote is None:
        found = asyncio.run(_apply_here(settings, timeout, allow_mass_delete=allow_mass_delete))
    else:
        if desired is not None and not _same(remote, settings):
            raise ReconcilerError(f"the daemon here follows {remote.desired}, not {desired}")
        found = _apply_there(remote, timeout, allow_mass_delete=allow_mass_delete)
    return _conclude(found, as_json=as_json)


def _apply_there(remote: Remote, timeout: float, *, allow_mass_delete: bool) -> dict[str, Any]:
    reading = remote.reload(allow_mass_delete=allow_mass_delete)
    deadline = time.monotonic() + timeout
    with Progress() as progress:
        state = remote.convergence()
        while not _is_over(state) and time.monotonic() < deadline:
            progress.show(state)
            time.sleep(_POLL_SECONDS)
            state = remote.convergence()
    return {"reading": reading, **state, "status": remote.status(None, secrets=False)}


async def _apply_here(
    settings: Settings,
    timeout: float,  # noqa: ASYNC109 - it is the user's
    *,
    allow_mass_delete: bool,
) -> dict[str, Any]:
    from reconciler.daemon import quiet_manager  # noqa: PLC0415 - it loads the engine's client
    from reconciler.store.lock import StateLock  # noqa: PLC0415
    from reconciler.store.store import Store  # noqa: PLC0415

    with StateLock(settings.state_dir):
        store = await Store.open(
            settings.state_dir,
            on_trouble=lambda error: click.echo(f"reconciler: {error}", err=True),
            on_recovered=lambda: None,
            ledger_rows=settings.ledger_rows,
        )
        async with store, quiet_manager(settings, store) as manager:
            reading = await manager.answers.reload(allow_mass_delete=allow_mass_delete)
            await manager.read_manifest(allow_mass_delete=allow_mass_delete)
            await manager.engine.ping()
            state = await _converge(manager, timeout)
            answer = await manager.answers.status()
    return {"reading": reading, **state, "status": answer}


async def _converge(manager: Manager, timeout: float) -> dict[str, Any]:  # noqa: ASYNC109
    deadline = time.monotonic() + timeout
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(root(), name=name) for name, root in manager.tasks().items()]
        with Progress() as progress:
            while True:
                state = manager.survey.convergence()
                synced = manager.informer.synced.is_set()
                if (synced and _is_over(state)) or time.monotonic() > deadline:
                    break
                progress.show(state)
                await asyncio.sleep(_POLL_SECONDS)
        for task in tasks:
            task.cancel()
    return state


def _is_over(state: dict[str, Any]) -> bool:
    return bool(state["converged"] or state["hopeless"])


def _conclude(found: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        render.print_json(found)
    reading = found["reading"]
    for line in reading["errors"]:
        click.echo(line, err=True)
    if reading["awaiting_confirmation"]:
        click.echo(render.braked_line(reading["awaiting_confirmation"]), err=True)
    for row in found["status"]["sandboxes"]:
        if row["name"] in found["pending"]:
            reason = row["reason"] or row["next"]
            click.echo(f"{row['name']}: {row['status']}: {reason}", err=True)
    good = found["converged"] and not reading["errors"] and not reading["awaiting_confirmation"]
    if good and not as_json:
        click.echo(f"converged: {found['total']} sandboxes are as desired")
    return 0 if good else 1


def _same(remote: Remote, settings: Settings) -> bool:
    return Path(remote.desired).resolve() == settings.desired.resolve()


COMMANDS = (plan, apply)
