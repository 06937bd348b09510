"""The way in for what users declare: read the file, keep what is good, hold what is not."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler.core import naming, policy
from reconciler.loop.queue import Priority
from reconciler.service.events import Event
from reconciler.store.manifest import Loaded, SpecDefaults, load
from reconciler.store.rows import Record
from reconciler.store.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.errors import Diagnostic
    from reconciler.loop.env_files import EnvFiles
    from reconciler.loop.reporter import Reporter
    from reconciler.loop.secrets import Secrets
    from reconciler.settings import Settings
    from reconciler.store.rows import Changes
    from reconciler.store.store import Store

_READ_AGAIN: Final = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What became of one reading of the desired file.

    ``braked`` are the sandboxes whose deletion waits to be confirmed.
    """

    diagnostics: tuple[Diagnostic, ...] = ()
    added: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    braked: tuple[str, ...] = ()

    @property
    def changes(self) -> frozenset[str]:
        """Every record that is not what it was."""
        return self.added | self.changed | self.removed


@dataclass(slots=True)
class _Last:
    """What the last reading found; a reading that finds the same again says nothing."""

    loaded: Loaded = field(default_factory=Loaded)
    braked: tuple[str, ...] = ()
    complaint: tuple[Diagnostic, ...] = ()


class Intake:
    """Takes the desired file into the store."""

    def __init__(
        self,
        path: Path,
        *,
        settings: Settings,
        store: Store,
        env_files: EnvFiles,
        secrets: Secrets,
        reporter: Reporter,
        enqueue: Callable[[str, Priority], None],
        clock: Callable[[], float],
    ) -> None:
        self.path = path
        self._settings = settings
        self._store = store
        self._env_files = env_files
        self._secrets = secrets
        self._reporter = reporter
        self._enqueue = enqueue
        self._clock = clock
        self._lock = asyncio.Lock()
        self._last = _Last()

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """What is wrong with the file as it is now."""
        return self._last.complaint

    @property
    def braked(self) -> tuple[str, ...]:
        """The sandboxes whose deletion waits to be confirmed."""
        return self._last.braked

    @property
    def unread(self) -> bool:
        """Whether something could not be read now, and is to be tried again."""
        return self._last.loaded.unread or self._env_files.unread

    def is_held(self, key: str) -> bool:
        """Whether the file names the sandbox in a way that cannot be read."""
        return self._last.loaded.fatal or self._last.loaded.is_held(key)

    def env_paths(self) -> set[Path]:
        """Every env file that a record in force names."""
        named = (record.spec.env_file for record in self._store.records.values())
        return {Path(path) for path in named if path is not None}

    async def read(self, *, allow_mass_delete: bool = False) -> Reading:
        """Read the file and take in what is good of it. Never raises for what the file holds."""
        async with self._lock:
            loaded = await asyncio.to_thread(load, self.path, defaults_of(self._settings))
            reading = self._take_in(loaded, allow_mass_delete=allow_mass_delete)
            self._secrets.renew()
            # In the same turn: a kill leaves both in the database, or neither.
            self._say_changes(reading)
            former, self._last = self._last, _Last(loaded, reading.braked, reading.diagnostics)
            await self._refresh_env_files()
            self._say(loaded, reading, former)
            return reading

    async def follow(self) -> None:
        """Read the file whenever it or an env file changes, for ever."""
        watch = Watch(self.path, self.env_paths, rescan=self._settings.rescan_interval)
        async with aclosing(watch.changes()) as changes:
            async for _ in changes:
                await self._read_in_the_end()
                if watch.problem:
                    self._reporter.complain(
                        Event.MANIFEST_WATCH_FAILED, path=str(self.path), error=watch.problem
                    )

    async def _read_in_the_end(self) -> None:
        await self.read()
        while self.unread:
            await asyncio.sleep(_READ_AGAIN)
            await self.read()

    def _take_in(self, loaded: Loaded, *, allow_mass_delete: bool) -> Reading:
        if loaded.fatal:
            return Reading(loaded.diagnostics, braked=self._last.braked)
        gone = self._gone(loaded)
        braked = () if allow_mass_delete else self._braked(loaded, gone)
        removed = [] if braked else gone
        if loaded.empty and not allow_mass_delete:
            # An empty file says nothing: not even that nothing is wanted.
            return Reading(loaded.diagnostics, braked=braked)
        changes = self._store.accept(self._records(loaded), removed)
        self._orphan_workspaces(changes)
        for name in changes.added | changes.changed | changes.removed:
            self._enqueue(name, Priority.USER)
        return Reading(
            loaded.diagnostics,
            changes.added,
            changes.changed,
            changes.removed,
            braked,
        )

    def _gone(self, loaded: Loaded) -> list[str]:
        declared = (r.name for r in self._store.records.values() if r.origin == "declared")
        known = {*declared, *self._store.held}
        return sorted(n for n in known if n not in loaded.records and not loaded.is_held(n))

    def _braked(self, loaded: Loaded, gone: list[str]) -> tuple[str, ...]:
        total = len(self._store.records)
        engages = policy.brake_engages(
            total,
            len(gone),
            count=self._settings.brake_count,
            percent=self._settings.brake_percent,
        )
        return tuple(gone) if loaded.empty or engages else ()

    def _records(self, loaded: Loaded) -> dict[str, Record]:
        now = self._clock()
        return {
            name: Record(name, "declared", declared.spec_name, declared.state, declared.spec, now)
            for name, declared in loaded.records.items()
        }

    def _orphan_workspaces(self, changes: Changes) -> None:
        """The time that a workspace is kept begins when its record is taken out."""
        for name in changes.removed:
            volume = naming.volume_name(self._settings.container_name_prefix, name)
            # A note of an earlier deletion says nothing of this one.
            self._store.drop_orphan("volume", volume)
            self._store.note_orphan(
                "volume",
                volume,
                sandbox=name,
                since=self._clock(),
                retain=self._store.deleted[name].retain,
                confirmed=True,
            )

    async def _refresh_env_files(self) -> None:
        changed = await self._env_files.refresh(self.env_paths())
        self._secrets.renew()
        for record in self._store.records.values():
            if record.spec.env_file in changed:
                self._enqueue(record.name, Priority.USER)

    # --- what is said -------------------------------------------------------------------------

    def _say(self, loaded: Loaded, reading: Reading, former: _Last) -> None:
        if reading.diagnostics != former.complaint:
            self._say_diagnostics(loaded)
            if not reading.diagnostics and not reading.changes:
                self._say_loaded()
        if reading.braked != former.braked:
            self._say_brake(reading, former.braked)

    def _say_changes(self, reading: Reading) -> None:
        for names, event in (
            (reading.added, Event.RECORD_ADDED),
            (reading.changed, Event.RECORD_CHANGED),
            (reading.removed, Event.RECORD_DELETED),
        ):
            for name in sorted(names):
                record = self._store.records.get(name)
                shown = {"spec": record.spec_name, "desired": str(record.state)} if record else {}
                self._reporter.tell(event, name, f"{self.path} was edited", **shown)
        if reading.changes:
            self._say_loaded()

    def _say_diagnostics(self, loaded: Loaded) -> None:
        event = Event.MANIFEST_REJECTED if loaded.fatal else Event.MANIFEST_HELD
        for diagnostic in loaded.diagnostics:
            self._reporter.log(
                event,
                path=diagnostic.file,
                location=f"{diagnostic.file}:{diagnostic.line}:{diagnostic.column}",
                error=str(diagnostic),
            )

    def _say_loaded(self) -> None:
        sandboxes = len(self._store.records)
        self._reporter.log(Event.MANIFEST_LOADED, path=str(self.path), sandboxes=sandboxes)

    def _say_brake(self, reading: Reading, former: tuple[str, ...]) -> None:
        if not reading.braked:
            why = "confirmed" if reading.removed.issuperset(former) else "taken back"
            self._reporter.log(Event.MANIFEST_BRAKE_RELEASED, deletions=len(former), why=why)
            return
        self._reporter.log(
            Event.MANIFEST_BRAKE,
            path=str(self.path),
            deletions=len(reading.braked),
            of=len(self._store.records),
            names=list(reading.braked[:20]),
            hint="confirm with: reconciler apply --allow-mass-delete",
        )


def defaults_of(settings: Settings) -> SpecDefaults:
    """What the settings put below every spec."""
    return SpecDefaults(
        mounts=settings.mounts,
        exposed_ports=settings.exposed_ports,
        health_check_path=settings.health_check_path,
    )
