"""How ``apply`` goes about it: it has the file read, waits, and says how things stand."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from reconciler.cli import render
from reconciler.cli.interrupts import loading
from reconciler.cli.output import say, say_json
from reconciler.cli.progress import Progress, standing_of, words_of
from reconciler.telemetry.redact import redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.cli.remote import Client
    from reconciler.control.queries import Queries
    from reconciler.settings import Settings
    from reconciler.wiring import Manager

_POLL_SECONDS: Final = 0.2
# A full status is dear where there are hundreds of sandboxes.
_LOOK_SECONDS: Final = 1.0


def through(daemon: Client, timeout: float, *, allow_mass_delete: bool) -> dict[str, Any]:
    """Have the daemon do it."""
    reading = daemon.reload(allow_mass_delete=allow_mass_delete)
    deadline = time.monotonic() + timeout
    with Progress() as progress:
        look = _seldom(lambda: daemon.status(None, secrets=False)["sandboxes"])
        state = daemon.convergence()
        while not _is_over(state) and time.monotonic() < deadline:
            progress.show(state, standing_of(look()))
            time.sleep(_POLL_SECONDS)
            state = daemon.convergence()
    return {"reading": reading, **state, "status": daemon.status(None, secrets=False)}


def here(settings: Settings, timeout: float, *, allow_mass_delete: bool) -> dict[str, Any]:
    """Do it in this process.

    Raises:
        EngineError: the engine cannot be asked at all.
        LockedError: a daemon works on the state directory, and does not answer.
    """
    found = asyncio.run(_here(settings, timeout, allow_mass_delete=allow_mass_delete))
    return dict(redactor.clean_answer(found))


async def _here(
    settings: Settings,
    timeout: float,  # noqa: ASYNC109 - it is the user's
    *,
    allow_mass_delete: bool,
) -> dict[str, Any]:
    with loading():
        from reconciler.cli.local import acting  # noqa: PLC0415 - it loads the engine's client
        from reconciler.control.queries import Queries  # noqa: PLC0415
        from reconciler.control.requests import Requests  # noqa: PLC0415

    async with acting(settings) as manager:
        # An engine that cannot be asked is told at once, before anything is taken in.
        await manager.engine.ping()
        queries = Queries(manager)
        reading = await Requests(manager).reload(allow_mass_delete=allow_mass_delete)
        # Whatever the loop reads again must not put the brake on what was just confirmed.
        await manager.read_manifest(allow_mass_delete=allow_mass_delete)
        await manager.observe()
        state = await _converge(manager, queries, timeout)
        return {"reading": reading, **state, "status": await queries.status()}


async def _converge(
    manager: Manager,
    queries: Queries,
    timeout: float,  # noqa: ASYNC109
) -> dict[str, Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(root(), name=name) for name, root in manager.tasks().items()]
        state = await _watch(queries, time.monotonic() + timeout)
        for task in tasks:
            task.cancel()
    return state


async def _watch(queries: Queries, deadline: float) -> dict[str, Any]:
    with Progress() as progress:
        look = _seldom(queries.sandboxes)
        state = queries.convergence()
        while not _is_over(state) and time.monotonic() < deadline:
            progress.show(state, standing_of(look()))
            await asyncio.sleep(_POLL_SECONDS)
            state = queries.convergence()
    return state


def _seldom(look: Callable[[], list[dict[str, Any]]]) -> Callable[[], list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []
    due = 0.0

    def seldom() -> list[dict[str, Any]]:
        nonlocal seen, due
        if time.monotonic() >= due:
            seen, due = look(), time.monotonic() + _LOOK_SECONDS
        return seen

    return seldom


def _is_over(state: dict[str, Any]) -> bool:
    return bool(state["converged"] or state["hopeless"])


def conclude(found: dict[str, Any], *, as_json: bool) -> int:
    """Say how it ended; the exit code."""
    if as_json:
        say_json(found)
    reading = found["reading"]
    render.complain(reading)
    _say_what_is_not(found)
    good = found["converged"] and not reading["errors"] and not reading["awaiting_confirmation"]
    if good and not as_json:
        say(f"converged: {found['total']} sandboxes are as desired")
    return 0 if good else 1


def _say_what_is_not(found: dict[str, Any]) -> None:
    if found["engine_error"]:
        say(f"reconciler: the engine cannot be asked: {found['engine_error']}", err=True)
    pending = set(found["pending"])
    for row in found["status"]["sandboxes"]:
        if row["name"] in pending:
            say(f"{row['name']}: not as desired: {words_of(row)}", err=True)
