"""``apply``: reconcile once, and wait for the result."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import click

from reconciler.cli.backend import running_daemon
from reconciler.cli.context import (
    Context,
    Duration,
    desired_option,
    json_option,
    mass_delete_option,
)
from reconciler.cli.interrupts import loading
from reconciler.cli.output import say, say_json
from reconciler.core.errors import ReconcilerError

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.cli.remote import RemoteBackend
    from reconciler.settings import Settings

_POLL_SECONDS: Final = 0.2


@click.command()
@desired_option
@click.option(
    "--timeout",
    type=Duration(),
    default="5m",
    show_default=True,
    help="How long to wait: 30s, 5m, 1h.",
)
@mass_delete_option
@json_option
@click.pass_obj
def apply(
    context: Context,
    desired: Path | None,
    timeout: float,
    *,
    allow_mass_delete: bool,
    as_json: bool,
) -> int:
    """Reconcile once and wait until the host matches the desired file.

    \b
      reconciler apply
      reconciler apply --timeout 30m             a first start that pulls large images
      reconciler apply --allow-mass-delete       confirm that all of them are deleted

    \b
    If a daemon runs, it does the work; otherwise this process does, and then exits.
    An error in the file blocks only what it affects; everything else is applied.
    Exit codes: 0 converged, 1 not converged (says which sandbox is not, and why).
    """
    settings = context.settings(desired=desired)
    from reconciler.cli import progress, render  # noqa: PLC0415 - slow to load

    with running_daemon(settings) as daemon:
        if daemon is None:
            answer = _locally(settings, timeout, allow_mass_delete=allow_mass_delete)
        elif desired is None or daemon.follows(desired):
            answer = _via_daemon(daemon, timeout, allow_mass_delete=allow_mass_delete)
        else:
            raise ReconcilerError(
                f"the running daemon follows {daemon.desired}, not {desired}; edit that file, or "
                "stop the daemon"
            )
    if as_json:
        say_json(answer)
    file = answer["reading"]
    render.print_manifest_errors(file)
    if answer["engine_error"]:
        say(f"reconciler: the engine is unreachable: {answer['engine_error']}", err=True)
    pending = set(answer["pending"])
    for row in answer["status"]["sandboxes"]:
        if row["name"] in pending:
            say(f"{row['name']}: not as desired: {progress.status_line(row)}", err=True)
    if not answer["converged"] or file["errors"] or file["awaiting_confirmation"]:
        return 1
    if not as_json:
        say(f"converged: {answer['total']} sandboxes are as desired")
    return 0


def _via_daemon(
    daemon: RemoteBackend, timeout: float, *, allow_mass_delete: bool
) -> dict[str, Any]:
    from reconciler.cli.progress import Progress  # noqa: PLC0415 - slow to load

    reading = daemon.reload(allow_mass_delete=allow_mass_delete)
    deadline = time.monotonic() + timeout
    with Progress(lambda: daemon.status(None, secrets=False)["sandboxes"]) as progress:
        while _is_pending(state := daemon.convergence()) and time.monotonic() < deadline:
            progress.show(state)
            time.sleep(_POLL_SECONDS)
    return {"reading": reading, **state, "status": daemon.status(None, secrets=False)}


def _locally(settings: Settings, timeout: float, *, allow_mass_delete: bool) -> dict[str, Any]:
    """Run the daemon's tasks in this process until the host matches.

    Raises:
        EngineError: the engine is unreachable.
        LockedError: a daemon that does not respond uses the state directory.
    """
    with loading():
        from reconciler.cli.local import standalone  # noqa: PLC0415 - loads the engine's client
        from reconciler.cli.progress import Progress  # noqa: PLC0415
        from reconciler.control.operations import Operations  # noqa: PLC0415
        from reconciler.control.queries import Queries  # noqa: PLC0415
        from reconciler.telemetry.redact import redactor  # noqa: PLC0415

    async def converge() -> dict[str, Any]:
        async with standalone(settings) as manager:
            # Fail before anything is stored if the engine is unreachable.
            await manager.engine.ping()
            queries = Queries(manager)
            reading = await Operations(manager).reload(allow_mass_delete=allow_mass_delete)
            await manager.observe()
            deadline = time.monotonic() + timeout
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(), name=name) for name, run in manager.tasks.items()]
                with Progress(queries.sandboxes) as progress:
                    while _is_pending(state := queries.convergence()):
                        if time.monotonic() >= deadline:
                            break
                        progress.show(state)
                        await asyncio.sleep(_POLL_SECONDS)
                for task in tasks:
                    task.cancel()
            return {"reading": reading, **state, "status": await queries.status()}

    return dict(redactor.clean_answer(asyncio.run(converge())))


def _is_pending(state: dict[str, Any]) -> bool:
    """Whether waiting longer may help."""
    return not (state["converged"] or state["hopeless"])
