"""``gc`` where no daemon runs: only what belongs to no record is worked on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from reconciler.control.queries import Queries
from reconciler.core.errors import EngineTimeout
from reconciler.core.priority import Priority

if TYPE_CHECKING:
    from reconciler.wiring import Manager

_POLL: Final = 0.05
_LIMIT: Final = 300.0


async def sweep(manager: Manager, *, allow_mass_delete: bool) -> list[dict[str, Any]]:
    """Note orphans, remove those that are due, and return all that there were, with the outcome.

    ``allow_mass_delete`` confirms those that the mass-delete guard holds back.

    Raises:
        EngineError: the engine cannot be asked, or is not done in time.
    """
    await manager.read_manifest()
    await manager.observe()
    queries = Queries(manager)
    unclaimed = {row["sandbox"] for row in queries.orphans()} - set(manager.store.records)
    await _forget_all_else(manager)
    rows: dict[str, dict[str, Any]] = {}
    for confirmed in (False, True)[: 1 + allow_mass_delete]:
        if confirmed:
            # The first round noted every orphan, so that this confirms all of them.
            manager.guard.confirm()
        rows |= {row["name"]: row for row in queries.orphans()}
        for key in unclaimed:
            manager.queue.add(key, Priority.USER)
        await _work_off(manager)
    # What belongs to a record is the daemon's to remove.
    return [
        row if row["sandbox"] in unclaimed else {**row, "error": None}
        for row in queries.outcome(list(rows.values()))
    ]


async def _forget_all_else(manager: Manager) -> None:
    # To read the file and to look at the engine puts every key into the queue: sandboxes that are
    # to be created and started, which is not what was asked for.
    while not manager.queue.idle(0.0):
        manager.queue.done(await manager.queue.get())


async def _work_off(manager: Manager) -> None:
    working = asyncio.create_task(manager.dispatcher.run(), name="dispatcher")
    try:
        async with asyncio.timeout(_LIMIT):
            while not manager.queue.idle(0.0):  # noqa: ASYNC110 - the queue tells nobody
                await asyncio.sleep(_POLL)
    except TimeoutError:
        raise EngineTimeout(f"the engine is not done after {_LIMIT:g} s: ask again") from None
    finally:
        working.cancel()
        await asyncio.wait({working})
