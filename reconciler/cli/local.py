"""This process in the daemon's place: what it sees, and what it does where none runs."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from reconciler.cli.output import say
from reconciler.cli.sweep import sweep
from reconciler.control.queries import Queries
from reconciler.control.requests import Requests
from reconciler.daemon import quiet_manager
from reconciler.engine.docker.host import address
from reconciler.store.engine_lock import EngineLock
from reconciler.store.lock import StateLock
from reconciler.store.store import Store
from reconciler.telemetry import logging
from reconciler.telemetry.redact import redactor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from reconciler.settings import Settings
    from reconciler.wiring import Manager

T = TypeVar("T")


class Local:
    """Looks at a rehearsal of the store, which is never written; only ``collect`` changes things.

    Every answer is as the daemon's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def status(self, name: str | None, *, secrets: bool) -> dict[str, Any]:
        """As ``status --json`` prints it."""
        return self._rehearse(lambda m: Queries(m).status(name, secrets=secrets))

    def plan(self) -> dict[str, Any]:
        """As ``plan --json`` prints it."""

        async def ask(manager: Manager) -> dict[str, Any]:
            return Queries(manager).plan()

        return self._rehearse(ask)

    def events(self, name: str | None, after: int | None, limit: int) -> list[dict[str, Any]]:
        """Ledger entries, oldest first."""
        return self._rehearse(
            lambda m: Queries(m).events(name, after=after, limit=limit),
            observe=False,
        )

    def garbage(self) -> list[dict[str, Any]]:
        """What nothing asks for."""

        async def ask(manager: Manager) -> list[dict[str, Any]]:
            return Queries(manager).garbage()

        return self._rehearse(ask)

    def export(self, *, secrets: bool) -> str:
        """The records in force, as YAML."""

        async def ask(manager: Manager) -> str:
            return Queries(manager).export(secrets=secrets)

        return self._rehearse(ask, observe=False, clean=not secrets)

    def collect(self, *, allow_mass_delete: bool) -> list[dict[str, Any]]:
        """Collect what is due; what there was."""

        async def act() -> list[dict[str, Any]]:
            async with acting(self._settings) as manager:
                rows = await sweep(manager, allow_mass_delete=allow_mass_delete)
                return list(redactor.clean_answer(rows))

        return asyncio.run(act())

    def adopt(self, name: str, volume: str | None) -> dict[str, Any]:
        """Take over a workspace or a container."""

        async def act() -> dict[str, Any]:
            async with acting(self._settings) as manager:
                await manager.read_manifest()
                await manager.observe()
                return await Requests(manager).adopt(name, volume)

        return asyncio.run(act())

    def _rehearse(
        self, ask: Callable[[Manager], Awaitable[T]], *, observe: bool = True, clean: bool = True
    ) -> T:
        async def look() -> T:
            async with rehearsal(self._settings, observe=observe) as manager:
                answer = await ask(manager)
                return cast("T", redactor.clean_answer(answer)) if clean else answer

        return asyncio.run(look())


@asynccontextmanager
async def rehearsal(settings: Settings, *, observe: bool = True) -> AsyncIterator[Manager]:
    """The loop over a store that is never written, with the file read; none of its tasks runs."""
    store = await Store.open_readonly(settings.state_dir)
    async with store, quiet_manager(settings, store) as manager:
        _hush(settings)
        await manager.read_manifest()
        if observe:
            await manager.observe()
        yield manager


@asynccontextmanager
async def acting(settings: Settings) -> AsyncIterator[Manager]:
    """The loop in the daemon's place, with the state directory locked; none of its tasks runs yet.

    Raises:
        LockedError: a daemon works on the state directory and does not answer, or another works
            with this instance on this engine.
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
        async with store, quiet_manager(settings, store) as manager:
            _hush(settings)
            yield manager


def _hush(settings: Settings) -> None:
    # The command itself says what is wrong; a log beside it would say so twice.
    logging.configure("auto", "debug" if settings.log_level == "debug" else "critical")
