"""Read-only queries as JSON-ready data, the same for the control socket and the commands."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from reconciler.control.status_rows import (
    change_row,
    is_converged,
    is_hopeless,
    sandbox_row,
    why_not_removed,
)
from reconciler.core.errors import EngineError, EngineUnavailable, NotFound
from reconciler.core.naming import container_name
from reconciler.core.units import iso
from reconciler.manifest.export import export
from reconciler.manifest.records import DeclaredRecord
from reconciler.manifest.sync import defaults_of
from reconciler.telemetry import events
from reconciler.telemetry.redact import MASK, is_secret_variable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence

    from reconciler.wiring import Manager

# How many ledger entries are searched for the end of a deleted sandbox.
_FORMER_ENTRIES: Final = 1000


class Queries:
    """Answer from what one manager knows. No query writes to the store or changes the engine."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    # --- status -------------------------------------------------------------------------------

    async def status(self, name: str | None = None, *, secrets: bool = False) -> dict[str, Any]:
        """Return the whole answer to ``reconciler status``.

        ``former`` is what the ledger knows of ``name`` if no such sandbox exists now.
        """
        manager = self._manager
        rows = self.sandboxes(name, secrets=secrets)
        trouble = manager.store.trouble
        return {
            "sandboxes": rows,
            "former": await self._former(name) if name and not rows else None,
            "engine": await self.engine_facts(),
            "disk": manager.disk.facts(),
            "conflict": manager.owners.conflict or None,
            "garbage": {"held": list(manager.guard.held), "reason": manager.guard.summary},
            "instance": manager.settings.instance,
            "desired": {
                "path": str(manager.manifest_sync.path),
                **self._manifest(),
            },
            "store": {"error": str(trouble) if trouble else None},
        }

    def sandboxes(self, name: str | None = None, *, secrets: bool = False) -> list[dict[str, Any]]:
        """Return one row for each sandbox; ``name`` is a sandbox's name or its container's."""
        manager = self._manager
        prefix = manager.settings.container_name_prefix
        return [
            sandbox_row(
                manager.snapshots.snapshot(key),
                store=manager.store,
                settings=manager.settings,
                secrets=secrets,
            )
            for key in self._names()
            if name in {None, key, container_name(prefix, key)}
        ]

    def _names(self) -> list[str]:
        """Return the sandboxes that are declared, being deleted, or held back."""
        store, held = self._manager.store, self._manager.manifest_sync.held_names()
        return sorted({*store.records, *store.deleted, *held})

    async def _former(self, name: str) -> dict[str, Any] | None:
        entries = await self._manager.store.events(name, limit=_FORMER_ENTRIES)
        latest = {entry.event: entry for entry in entries}
        if not latest:
            return None
        deleted = latest.get(events.RecordDeleted.event_name)
        died = latest.get(events.SandboxDied.event_name)
        return {
            "deleted_at": iso(deleted.at if deleted else None),
            "last_exit": {"at": iso(died.at), "reason": died.cause, **died.data} if died else None,
        }

    async def engine_facts(self) -> dict[str, Any]:
        """Return the ``engine`` part of ``status``; asks the engine for its version."""
        manager = self._manager
        try:
            info = await manager.engine.info()
        except EngineError as error:
            return {"reachable": False, "error": str(error)}
        return {
            "reachable": True,
            "name": info.name,
            "version": info.version,
            "api_version": info.api_version,
            "synced": manager.informer.synced.is_set(),
            "wedged": manager.breakers.wedged or None,
            "forbidden": [str(error) for error in manager.engine.forbidden()],
        }

    def _manifest(self) -> dict[str, Any]:
        sync = self._manager.manifest_sync
        return {
            "errors": [str(diagnostic) for diagnostic in sync.diagnostics],
            "awaiting_confirmation": list(sync.held_deletions),
        }

    def summary(self) -> str:
        """Return the state in one line, for systemd's STATUS."""
        manager = self._manager
        if not manager.informer.synced.is_set():
            return f"waiting for the engine: {manager.informer.error}"
        if manager.breakers.wedged:
            return manager.breakers.wedged
        if manager.store.trouble is not None:
            return f"state cannot be saved: {manager.store.trouble}"
        state = self.convergence()
        settled = state["total"] - len(state["pending"])
        line = f"{settled} of {state['total']} sandboxes are as desired"
        notes = (manager.disk.hold, manager.guard.summary, manager.owners.conflict)
        return "; ".join(filter(None, (line, *notes)))

    # --- plan ---------------------------------------------------------------------------------

    def plan(self) -> dict[str, Any]:
        """Return what would be done now: ``changes`` by sandbox, each with its ordered actions.

        A sandbox that is not as desired, and for which nothing can be done now, is among them with
        what it waits for. ``in_sync`` is false while there are changes, the desired file has
        errors, or deletions await confirmation.
        """
        snapshots = self._manager.snapshots
        keys = sorted({*snapshots.keys(), *self._manager.manifest_sync.held_names()})
        rows = [change_row(snapshots.snapshot(key)) for key in keys]
        changes = [row for row in rows if row is not None]
        manifest = self._manifest()
        in_sync = not (changes or manifest["errors"] or manifest["awaiting_confirmation"])
        return {"in_sync": in_sync, "changes": changes, **manifest}

    def convergence(self) -> dict[str, Any]:
        """Return whether the host matches the records.

        ``pending`` lists the sandboxes that do not, or whose state is stale, as all are after the
        engine was lost. ``hopeless`` means that each of them keeps failing. ``engine_error`` says
        why the engine is unreachable.
        """
        manager = self._manager
        snapshots = {name: manager.snapshots.snapshot(name) for name in self._names()}
        failing = {name for name, found in snapshots.items() if not is_converged(found)}
        stale: set[str] = set()
        engine_error = None
        if manager.informer.synced.is_set():
            stale = {name for name in snapshots if not manager.cache.is_clean(name)}
        else:
            engine_error = manager.informer.error
        uncertain = bool(stale) or engine_error is not None
        return {
            "converged": not failing and not uncertain,
            "total": len(snapshots),
            "pending": sorted(failing | stale),
            "hopeless": bool(failing)
            and not uncertain
            and all(is_hopeless(snapshots[name]) for name in failing),
            "engine_error": engine_error,
        }

    # --- history, export, logs ----------------------------------------------------------------

    async def events(
        self,
        sandbox: str | None = None,
        *,
        after: int | None = None,
        limit: int = 200,
    ) -> list[dict[str, Any]]:
        """Return ledger entries, oldest first."""
        entries = await self._manager.store.events(sandbox, after=after, limit=limit)
        return [
            {
                "id": entry.id,
                "at": iso(entry.at),
                "event": entry.event,
                "sandbox": entry.sandbox,
                "cause": entry.cause,
                **({"data": dict(entry.data)} if entry.data else {}),
            }
            for entry in entries
        ]

    def export(self, *, secrets: bool = False) -> str:
        """Return the records in force as a desired file; secrets are masked by default."""
        manager = self._manager
        path = str(manager.manifest_sync.path)
        records = []
        for record in manager.store.records.values():
            spec = record.spec
            hidden = {} if secrets else {k: MASK for k in spec.env if is_secret_variable(k)}
            if hidden:
                spec = spec.model_copy(update={"env": {**spec.env, **hidden}})
            records.append(
                DeclaredRecord(record.name, record.spec_name, record.state, spec, path, 0)
            )
        return export(records, defaults_of(manager.settings))

    async def logs(self, name: str, *, tail: int, follow: bool) -> AsyncIterator[str]:
        """Return the log lines of a sandbox's container.

        Raises:
            NotFound: no sandbox has that name, or it has no container yet.
            EngineError: the engine is unreachable, or refuses.
        """
        manager = self._manager
        rows = self.sandboxes(name)
        if not rows:
            raise NotFound(f"no sandbox is named {name}; list them with `reconciler status`")
        container_id = rows[0]["container_id"]
        if container_id is None:
            if not manager.informer.synced.is_set():
                error = manager.informer.error
                raise EngineUnavailable(f"{name}: the engine is unreachable: {error}")
            why = rows[0]["reason"] or rows[0]["next"]
            raise NotFound(f"{name}: it has no container yet{f': {why}' if why else ''}")
        # Read before the answer begins: an error must not look like an empty log.
        lines = [] if follow else await manager.engine.log_tail(container_id, tail)

        async def read() -> AsyncIterator[str]:
            if follow:
                async with manager.engine.follow_logs(container_id, tail) as followed:
                    async for line in followed:
                        yield line
            for line in lines:
                yield line

        return read()

    # --- garbage ------------------------------------------------------------------------------

    def garbage(self) -> list[dict[str, Any]]:
        """Return each orphan, surplus volume and unused image, and when it is removed."""
        manager = self._manager
        date = manager.store.clock.date
        rows = [{**row, "removed": False, "error": None} for row in self.orphans()]
        for image, remove_at in manager.images.unused():
            rows.append(
                {
                    "kind": "image",
                    "name": image.reference,
                    "sandbox": None,
                    "since": iso(date(image.used_at)),
                    "remove_at": iso(date(remove_at)),
                    "why": "unused; removed if the engine's disk fills up",
                    "held": False,
                    # Age alone removes no image.
                    "due": False,
                    "removed": False,
                    "error": None,
                }
            )
        return rows

    def orphans(self, keys: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return the containers and volumes that no record wants, of all keys by default."""
        manager = self._manager
        date = manager.store.clock.date
        rows = []
        for key in sorted(manager.snapshots.keys() if keys is None else keys):
            snapshot = manager.snapshots.snapshot(key)
            for one in manager.orphans.report(snapshot):
                remove_at = one.remove_at
                row = asdict(one)
                row["since"] = iso(date(one.since))
                row["remove_at"] = None if remove_at is None else iso(date(remove_at))
                row["due"] = remove_at is not None and remove_at <= snapshot.now
                rows.append(row)
        return rows

    def outcome(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return earlier rows of ``orphans`` with the result of the removal of those due.

        ``removed``: it is gone. ``error``: why it is not, or None if it is gone or was not due.
        """
        keys = {row["sandbox"] for row in rows if row["due"]}
        left = {(row["kind"], row["name"]) for row in self.orphans(keys)}
        found = []
        for row in rows:
            remains = row["due"] and (row["kind"], row["name"]) in left
            error = None
            if remains:
                error = self.why_not_removed(row["sandbox"])
                error = error or "the engine has not removed it yet; run `reconciler gc` again"
            found.append({**row, "removed": row["due"] and not remains, "error": error})
        return found

    def why_not_removed(self, key: str) -> str:
        """Return what blocks the removal of the key's garbage; empty if nothing does."""
        return why_not_removed(self._manager.snapshots.snapshot(key))
