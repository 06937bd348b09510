"""The answers to what is asked over the control socket and by the commands: plain data."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from reconciler.control.survey import Survey
from reconciler.core.errors import EngineError, EngineUnavailable, NotFound, Refused
from reconciler.core.priority import Priority
from reconciler.core.units import iso
from reconciler.manifest.export import export
from reconciler.manifest.records import DeclaredRecord
from reconciler.manifest.sync import defaults_of
from reconciler.telemetry.events import Event
from reconciler.telemetry.redact import MASK, is_secret_variable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from reconciler.core.spec import SandboxSpec
    from reconciler.wiring import Manager

# Seconds that a collection is waited for, and between two looks at it.
_REMOVAL: Final = 60.0
_POLL: Final = 0.05
# Entries of the ledger that are looked through for how a former sandbox ended.
_STORY: Final = 1000


class Queries:
    """One answer a question, from the parts of one manager."""

    def __init__(self, loop: Manager) -> None:
        self._loop = loop
        self.survey = Survey(
            settings=loop.settings,
            store=loop.store,
            snapshots=loop.snapshots,
            collector=loop.collector,
            held_names=loop.manifest_sync.held_names,
        )

    def plan(self) -> dict[str, Any]:
        """Return what would be done now, and what is wrong with the desired file.

        ``in_sync`` is false while the file has errors, or deletions wait to be confirmed.
        """
        planned, file = self.survey.plan(), self._manifest()
        whole = not file["errors"] and not file["awaiting_confirmation"]
        return {**planned, "in_sync": planned["in_sync"] and whole, **file}

    def convergence(self) -> dict[str, Any]:
        """Whether the host agrees with the records, as far as it was looked at.

        ``engine_error`` says why it cannot be. What has changed and was not looked at yet, as all
        may have while the engine was away, is pending.
        """
        informer, state = self._loop.informer, self.survey.convergence()
        if not informer.synced.is_set():
            state |= {"converged": False, "hopeless": False}
            return {**state, "engine_error": informer.error}
        if unseen := {name for name in self.survey.names() if not self._loop.cache.knows(name)}:
            state |= {"converged": False, "hopeless": False}
            state["pending"] = sorted(unseen.union(state["pending"]))
        return {**state, "engine_error": None}

    async def reload(
        self, *, allow_mass_delete: bool = False, source: str = "control socket"
    ) -> dict[str, Any]:
        """Read the desired file now; the outcome, which is logged too."""
        self._loop.recorder.log(Event.RELOAD_REQUESTED, source=source)
        reading = await self._loop.manifest_sync.read(allow_mass_delete=allow_mass_delete)
        changes = {
            "added": sorted(reading.added),
            "changed": sorted(reading.changed),
            "removed": sorted(reading.removed),
        }
        waits = {
            "errors": [str(diagnostic) for diagnostic in reading.diagnostics],
            "awaiting_confirmation": list(reading.held_deletions),
        }
        if any(waits.values()):
            self._loop.recorder.log(Event.RELOAD_FAILED, source=source, **waits)
        else:
            self._loop.recorder.log(Event.RELOAD_DONE, source=source, **changes)
        return {**waits, **changes}

    async def events(
        self,
        sandbox: str | None = None,
        *,
        after: int | None = None,
        limit: int = 200,
    ) -> list[dict[str, Any]]:
        """The ledger's entries, oldest first."""
        entries = await self._loop.store.events(sandbox, after=after, limit=limit)
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
        """The records in force, as a desired file; without ``secrets``, each secret is masked."""
        path = str(self._loop.manifest_sync.path)
        records = [
            DeclaredRecord(
                r.name, r.spec_name, r.state, r.spec if secrets else _masked(r.spec), path, 0
            )
            for r in self._loop.store.records.values()
        ]
        return export(records, defaults_of(self._loop.settings))

    async def logs(self, name: str, *, tail: int, follow: bool) -> AsyncIterator[str]:
        """Return the lines of a sandbox's container.

        Raises:
            NotFound: no sandbox has that name, or its container is not made yet.
            EngineError: the engine cannot be asked, or refuses.
        """
        found = self.survey.sandboxes(name)
        container_id = found[0]["container_id"] if found else None
        if container_id is None:
            raise self._no_log(name, found)
        if follow:
            return self._follow_log(container_id, tail)
        lines = await self._loop.engine.log_tail(container_id, tail)
        return _iterate(lines)

    def _no_log(self, name: str, found: list[dict[str, Any]]) -> EngineError:
        if not found:
            return NotFound(f"no sandbox is called {name}: see `reconciler status`")
        if not self._loop.informer.synced.is_set():
            error = self._loop.informer.error
            return EngineUnavailable(f"{name}: the engine cannot be asked: {error}")
        why = found[0]["reason"] or found[0]["next"]
        return NotFound(f"{name}: its container is not made yet{f': {why}' if why else ''}")

    async def _follow_log(self, container_id: str, tail: int) -> AsyncIterator[str]:
        async with self._loop.engine.follow_logs(container_id, tail) as lines:
            async for line in lines:
                yield line

    def garbage(self) -> list[dict[str, Any]]:
        """What nothing asks for, and when it goes."""
        rows = [{**row, "removed": False, "error": None} for row in self.survey.garbage()]
        return [*rows, *self._idle_images()]

    def _idle_images(self) -> list[dict[str, Any]]:
        """Images that we pulled: never due by time alone."""
        date = self._loop.store.clock.date
        return [
            {
                "kind": "image",
                "name": image.reference,
                "sandbox": None,
                "since": iso(date(image.used_at)),
                "remove_at": iso(date(remove_at)),
                "why": "pulled for a sandbox, and none has it: goes if the engine's disk fills up",
                "held": False,
                "due": False,
                "removed": False,
                "error": None,
            }
            for image, remove_at in self._loop.images.idle()
        ]

    async def collect(self, *, allow_mass_delete: bool = False) -> list[dict[str, Any]]:
        """Have everything that is due removed, and return what there was and what became of it.

        ``allow_mass_delete`` confirms the removal of all orphans that are there now. Ends when
        nothing that was due is left but what cannot be removed, or after a minute.
        """
        if allow_mass_delete:
            self._loop.guard.confirm()
        rows = self.survey.garbage()
        for key in {row["sandbox"] for row in rows}:
            self._loop.queue.add(key, Priority.USER)
        with suppress(TimeoutError):
            async with asyncio.timeout(_REMOVAL):
                await self._until_removed([row for row in rows if row["due"]])
        return self.survey.outcome(rows)

    async def _until_removed(self, rows: list[dict[str, Any]]) -> None:
        survey = self.survey
        while True:
            left = [row for row in survey.outcome(rows) if not row["removed"]]
            if all(survey.stuck(row["sandbox"]) for row in left):
                return
            await asyncio.sleep(_POLL)

    async def adopt(self, name: str, volume: str | None) -> dict[str, Any]:
        """Take over a workspace, or a container, that this daemon did not make.

        Args:
            name: A sandbox with a record.
            volume: The workspace; None: the volume that has the sandbox's own name.

        Raises:
            NotFound: there is no such record, volume or container.
            Refused: the sandbox has another workspace, or the volume is another sandbox's.
            StoreError: it cannot be written down.
        """
        loop = self._loop
        if name not in loop.store.records:
            raise NotFound(
                f"{name}: no such sandbox: declare it in {loop.manifest_sync.path} first"
            )
        has = {known.name for known in loop.cache.observed(name).volumes}
        if volume is not None and has - {volume}:
            raise Refused(
                f"{name} has the workspace {', '.join(sorted(has))}: copy the data into it, or "
                "remove it first"
            )
        taken = await loop.ownership.adopt(name, volume)
        loop.cache.doubt(name)
        loop.store.put_memory(name, replace(loop.store.memory(name), failures=()))
        loop.recorder.tell(
            Event.SANDBOX_CLAIMED, name, "a person asked for it", objects=list(taken)
        )
        await loop.store.flush()
        loop.queue.add(name, Priority.USER)
        return {"sandbox": name, "adopted": list(taken)}

    async def engine_facts(self) -> dict[str, Any]:
        """What ``status`` says of the engine."""
        try:
            info = await self._loop.engine.info()
        except EngineError as error:
            return {"reachable": False, "error": str(error)}
        return {
            "reachable": True,
            "name": info.name,
            "version": info.version,
            "api_version": info.api_version,
            "synced": self._loop.informer.synced.is_set(),
            "wedged": self._loop.breakers.wedged or None,
            "forbidden": [str(error) for error in self._loop.engine.forbidden()],
        }

    async def status(self, name: str | None = None, *, secrets: bool = False) -> dict[str, Any]:
        """The whole answer to ``reconciler status``.

        ``former`` is what the ledger knows of ``name`` where no such sandbox is there now.
        """
        rows = self.survey.sandboxes(name, secrets=secrets)
        return {
            "sandboxes": rows,
            "former": await self._former(name) if name and not rows else None,
            "engine": await self.engine_facts(),
            "disk": self._loop.disk.facts(),
            "conflict": self._loop.owners.conflict or None,
            "garbage": {"held": list(self._loop.guard.held), "reason": self._loop.guard.summary},
            "instance": self._loop.settings.instance,
            "desired": {
                "path": str(self._loop.manifest_sync.path),
                **self._manifest(),
            },
            "store": {"error": str(self._loop.store.trouble) if self._loop.store.trouble else None},
        }

    async def _former(self, name: str) -> dict[str, Any] | None:
        entries = await self._loop.store.events(name, limit=_STORY)
        latest = {entry.event: entry for entry in entries}
        if not latest:
            return None
        deleted, died = latest.get(Event.RECORD_DELETED), latest.get(Event.SANDBOX_DIED)
        return {
            "deleted_at": iso(deleted.at if deleted else None),
            "last_exit": {"at": iso(died.at), "reason": died.cause, **died.data} if died else None,
        }

    def _manifest(self) -> dict[str, Any]:
        """What is wrong with the desired file, and what of it waits."""
        return {
            "errors": [str(diagnostic) for diagnostic in self._loop.manifest_sync.diagnostics],
            "awaiting_confirmation": list(self._loop.manifest_sync.held_deletions),
        }


def _masked(spec: SandboxSpec) -> SandboxSpec:
    env = {k: MASK if is_secret_variable(k) else v for k, v in spec.env.items()}
    return spec if env == spec.env else spec.model_copy(update={"env": env})


async def _iterate(lines: Sequence[str]) -> AsyncIterator[str]:
    for line in lines:
        yield line
