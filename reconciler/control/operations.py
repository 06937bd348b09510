"""Carry out what a client requests: reload the desired file, collect garbage, adopt a volume."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from reconciler.control.queries import Queries
from reconciler.core.errors import NotFound, Refused
from reconciler.core.priority import Priority
from reconciler.telemetry import events

if TYPE_CHECKING:
    from reconciler.wiring import Manager

# Seconds: how long `collect` waits for removals, and how often it checks them.
_REMOVAL: Final = 60.0
_POLL: Final = 0.05


class Operations:
    """Change things on behalf of a client; the answers are JSON-ready, as those of ``Queries``."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._queries = Queries(manager)

    async def reload(
        self, *, allow_mass_delete: bool = False, source: str = "control socket"
    ) -> dict[str, Any]:
        """Read the desired file now, log the outcome and return it."""
        recorder = self._manager.recorder
        recorder.log(events.ReloadRequested(source=source))
        result = await self._manager.manifest_sync.read(allow_mass_delete=allow_mass_delete)
        errors = [str(diagnostic) for diagnostic in result.diagnostics]
        waiting = list(result.held_deletions)
        added, changed = sorted(result.added), sorted(result.changed)
        removed = sorted(result.removed)
        event: events.Event = events.ReloadDone(
            source=source, added=added, changed=changed, removed=removed
        )
        if errors or waiting:
            event = events.ReloadFailed(source=source, errors=errors, awaiting_confirmation=waiting)
        recorder.log(event)
        return {
            "errors": errors,
            "awaiting_confirmation": waiting,
            "added": added,
            "changed": changed,
            "removed": removed,
        }

    async def collect(self, *, allow_mass_delete: bool = False) -> list[dict[str, Any]]:
        """Remove all garbage that is due, and return each row with its outcome.

        Return as soon as the rest is blocked, or after a minute.

        Args:
            allow_mass_delete: Confirm the removal of every orphan that exists now.
        """
        manager, queries = self._manager, self._queries
        if allow_mass_delete:
            manager.guard.confirm()
        rows = queries.orphans()
        for key in {row["sandbox"] for row in rows}:
            manager.queue.add(key, Priority.USER)
        due = [row for row in rows if row["due"]]
        with suppress(TimeoutError):
            async with asyncio.timeout(_REMOVAL):
                while True:
                    left = [row for row in queries.outcome(due) if not row["removed"]]
                    if all(queries.why_not_removed(row["sandbox"]) for row in left):
                        break
                    await asyncio.sleep(_POLL)
        return queries.outcome(rows)

    async def adopt(self, name: str, volume: str | None) -> dict[str, Any]:
        """Take over a workspace, or a container, that this daemon did not create.

        Without ``volume``, after a loss, it accepts the new workspace instead.

        Args:
            name: A declared sandbox.
            volume: The workspace; by default the volume with the name that the sandbox's
                workspace would get.

        Raises:
            NotFound: there is no such record, volume or container.
            Refused: the sandbox has another workspace, or another sandbox owns the volume.
            StoreError: the adoption cannot be saved.
        """
        manager = self._manager
        if name not in manager.store.records:
            path = manager.manifest_sync.path
            raise NotFound(f"no sandbox is named {name}; declare it in {path} first")
        workspaces = {known.name for known in manager.cache.observed(name).volumes}
        if volume is not None and workspaces - {volume}:
            raise Refused(
                f"{name} already has the workspace {', '.join(sorted(workspaces))}; copy the data "
                "into it, or remove it first"
            )
        memory = manager.store.memory(name)
        if memory.loss is not None and volume is None and workspaces:
            adopted = tuple(sorted(workspaces))
        else:
            adopted = await manager.ownership.adopt(name, volume)
        manager.cache.request_listing(name)
        # What failed for want of the workspace is tried again at once.
        memory = replace(manager.store.memory(name), failures=(), loss=None)
        manager.store.put_memory(name, memory)
        cause = "requested with `reconciler adopt`"
        manager.recorder.tell(
            events.SandboxClaimed(sandbox=name, cause=cause, objects=list(adopted))
        )
        await manager.store.flush()
        manager.queue.add(name, Priority.USER)
        return {"sandbox": name, "adopted": list(adopted)}
