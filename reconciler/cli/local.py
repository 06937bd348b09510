"""Answer and act in this process, without a daemon."""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from reconciler.cli.output import say
from reconciler.control.operations import Operations
from reconciler.control.queries import Queries
from reconciler.core.errors import EngineTimeout
from reconciler.core.priority import Priority
from reconciler.daemon import make_engine
from reconciler.engine.docker.host import address
from reconciler.store.engine_lock import EngineLock
from reconciler.store.lock import StateLock
from reconciler.store.store import Store
from reconciler.telemetry import logging
from reconciler.telemetry.recorder import Recorder
from reconciler.telemetry.redact import redactor
from reconciler.wiring import Manager, build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from reconciler.settings import Settings

T = TypeVar("T")

_POLL: Final = 0.05
_COLLECT_LIMIT: Final = 300.0


class LocalBackend:
    """Give the daemon's answers over a read-only store; ``collect`` and ``adopt`` change things."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def status(self, name: str | None, *, secrets: bool) -> dict[str, Any]:
        """Return what ``status --json`` prints."""
        return self._query(lambda queries: queries.status(name, secrets=secrets))

    def plan(self) -> dict[str, Any]:
        """Return what ``plan --json`` prints."""
        return self._query(lambda queries: queries.plan())

    def events(self, name: str | None, after: int | None, limit: int) -> list[dict[str, Any]]:
        """Return ledger entries, oldest first."""
        return self._query(
            lambda queries: queries.events(name, after=after, limit=limit), observe=False
        )

    def export(self, *, secrets: bool) -> str:
        """Return the records in force, as YAML."""
        return self._query(
            lambda queries: queries.export(secrets=secrets), observe=False, redact=not secrets
        )

    def garbage(self) -> list[dict[str, Any]]:
        """Return what no record wants."""
        return self._query(lambda queries: queries.garbage())

    def logs(self, name: str, *, tail: int, follow: bool, on_line: Callable[[str], None]) -> None:
        """Call ``on_line`` for each line of a sandbox's log."""

        async def read() -> None:
            async with dry_run(self._settings) as manager:
                async for line in await Queries(manager).logs(name, tail=tail, follow=follow):
                    on_line(line)

        asyncio.run(read())

    def _query(
        self,
        ask: Callable[[Queries], Awaitable[T] | T],
        *,
        observe: bool = True,
        redact: bool = True,
    ) -> T:
        async def query() -> T:
            async with dry_run(self._settings, observe=observe) as manager:
                answer = ask(Queries(manager))
                if inspect.isawaitable(answer):
                    answer = await answer
                return cast("T", redactor.clean_answer(answer) if redact else answer)

        return asyncio.run(query())

    def collect(self, *, allow_mass_delete: bool) -> list[dict[str, Any]]:
        """Remove the garbage that is due, and return all of it with the outcome."""

        async def collect() -> list[dict[str, Any]]:
            async with standalone(self._settings) as manager:
                rows = await collect_garbage(manager, allow_mass_delete=allow_mass_delete)
                return list(redactor.clean_answer(rows))

        return asyncio.run(collect())

    def adopt(self, name: str, volume: str | None) -> dict[str, Any]:
        """Take over a workspace or a container."""

        async def adopt() -> dict[str, Any]:
            async with standalone(self._settings) as manager:
                await manager.read_manifest()
                await manager.observe()
                return await Operations(manager).adopt(name, volume)

        return asyncio.run(adopt())


@asynccontextmanager
async def dry_run(settings: Settings, *, observe: bool = True) -> AsyncIterator[Manager]:
    """Yield a manager over a read-only store, with the desired file read and no task running.

    Args:
        settings: The settings of the daemon in whose place it answers.
        observe: Whether to list what the engine has.

    Raises:
        EngineError: the engine is unreachable.
    """
    store = await Store.open_readonly(settings.state_dir)
    async with store, _manager(settings, store) as manager:
        await manager.read_manifest()
        if observe:
            await manager.observe()
        yield manager


@asynccontextmanager
async def standalone(settings: Settings) -> AsyncIterator[Manager]:
    """Yield a manager that may change things, with the daemon's locks taken and no task running.

    Raises:
        LockedError: a daemon that does not respond uses the state directory, or another daemon
            uses this instance on this engine.
    """
    with (
        StateLock(settings.state_dir),
        EngineLock(address(settings.docker_host), settings.instance),
    ):
        store = await Store.open(
            settings.state_dir,
            on_trouble=lambda error: say(f"reconciler: {error}", err=True),
            on_recovered=lambda: None,
            ledger_rows=settings.ledger_rows,
        )
        async with store, _manager(settings, store) as manager:
            yield manager


@asynccontextmanager
async def _manager(settings: Settings, store: Store) -> AsyncIterator[Manager]:
    # The command reports errors itself; the log would repeat them.
    logging.configure("auto", "debug" if settings.log_level == "debug" else "critical")
    engine = make_engine(settings)
    recorder = Recorder(time.monotonic)
    recorder.ledger = None if store.readonly else store.append
    manager = build(settings, engine=engine, store=store, recorder=recorder)
    try:
        yield manager
    finally:
        await manager.close()
        await engine.close()


async def collect_garbage(manager: Manager, *, allow_mass_delete: bool) -> list[dict[str, Any]]:
    """Record new orphans, remove those that are due, and return all of them with the outcome.

    Nothing else is changed: no sandbox is created, started or stopped.

    Args:
        manager: From ``standalone``.
        allow_mass_delete: Confirm the removals that the mass-delete guard blocks.

    Raises:
        EngineError: the engine is unreachable, or too slow.
    """
    await manager.read_manifest()
    await manager.observe()
    queries = Queries(manager)
    unclaimed = {row["sandbox"] for row in queries.orphans()} - set(manager.store.records)
    # Reading the file and listing the engine enqueued every key: drop those, since reconciling
    # them would create and start sandboxes.
    while not manager.queue.idle(0.0):
        manager.queue.done(await manager.queue.get())
    rows: dict[str, dict[str, Any]] = {}
    for confirmed in (False, True)[: 1 + allow_mass_delete]:
        if confirmed:
            # The first round recorded every orphan, so that this confirms all of them.
            manager.guard.confirm()
        rows |= {row["name"]: row for row in queries.orphans()}
        for key in unclaimed:
            manager.queue.add(key, Priority.USER)
        working = asyncio.create_task(manager.workers.run(), name="workers")
        try:
            async with asyncio.timeout(_COLLECT_LIMIT):
                while not manager.queue.idle(0.0):  # noqa: ASYNC110 - the queue has no event
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise EngineTimeout(
                f"the engine has not finished after {_COLLECT_LIMIT:g} s; run `reconciler gc` again"
            ) from None
        finally:
            working.cancel()
            await asyncio.wait({working})
    # Only the daemon removes what belongs to a record.
    return [
        row if row["sandbox"] in unclaimed else {**row, "error": None}
        for row in queries.outcome(list(rows.values()))
    ]
