"""Keep the store's records in line with the desired file.

A valid record is accepted even if others are invalid; an invalid one stays as last accepted.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler.core import naming
from reconciler.core.errors import ManifestError
from reconciler.core.mass_delete import mass_delete_guard_engages
from reconciler.core.priority import Priority
from reconciler.liveness import activity, waiting
from reconciler.manifest.env_files import read_env_files
from reconciler.manifest.loader import (
    Loaded,
    SpecDefaults,
    env_file_errors,
    failed,
    parse,
    read_contents,
)
from reconciler.manifest.text_file import unreadable
from reconciler.manifest.watch import Watch
from reconciler.store.tables import Record
from reconciler.telemetry import events
from reconciler.threads import BoundedCalls, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.errors import Diagnostic
    from reconciler.manifest.env_files import EnvFiles
    from reconciler.manifest.secrets import Secrets
    from reconciler.settings import Settings
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

# Seconds. A read may have to wait for another caller's.
_MAX_READ: Final = 60.0
_RETRY: Final = 1.0
_MAX_RETRY: Final = 10.0
_MAX_NAMES: Final = 20


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The outcome of one read of the desired file.

    ``diagnostics`` are the problems of the file and of the env files that it names.
    ``held_deletions`` are the sandboxes whose deletion needs a confirmation.
    """

    diagnostics: tuple[Diagnostic, ...] = ()
    added: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    held_deletions: tuple[str, ...] = ()

    @property
    def changes(self) -> frozenset[str]:
        """The names of all records that differ from before."""
        return self.added | self.changed | self.removed


@dataclass(slots=True)
class _Last:
    """The outcome of the last read. A read with the same outcome is not logged again."""

    loaded: Loaded = field(default_factory=Loaded)
    held_deletions: tuple[str, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()


class ManifestSync:
    """Reads the desired file, and accepts its valid records into the store."""

    def __init__(
        self,
        path: Path,
        *,
        settings: Settings,
        store: Store,
        env_files: EnvFiles,
        calls: BoundedCalls,
        secrets: Secrets,
        recorder: Recorder,
        enqueue: Callable[[str, Priority], None],
    ) -> None:
        self.path = path
        self._settings = settings
        self._store = store
        self._env_files = env_files
        self._calls = calls
        self._secrets = secrets
        self._recorder = recorder
        self._enqueue = enqueue
        self._lock = asyncio.Lock()
        self._last = _Last()
        self._was_read = False

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """The problems of the file at the last read, without those of its env files."""
        return self._last.loaded.diagnostics

    @property
    def held_deletions(self) -> tuple[str, ...]:
        """The sandboxes whose deletion needs a confirmation."""
        return self._last.held_deletions

    @property
    def must_retry(self) -> bool:
        """Whether a file could not be read, for a reason that may pass by itself."""
        return self._last.loaded.must_retry or self._env_files.must_retry

    def is_held(self, key: str) -> bool:
        """Return whether the file has a record of the sandbox that cannot be used."""
        return self._last.loaded.fatal or self._last.loaded.is_held(key)

    def held_because(self, key: str) -> str:
        """Return why the file's record of a sandbox cannot be used; empty if it can.

        A file that cannot be parsed holds back every record, and is no fault of a sandbox.
        """
        if unreadable := self._store.held.get(key):
            return f"its stored record cannot be read by this release: {unreadable}"
        if self._last.loaded.fatal:
            return ""
        return "; ".join(map(str, self._last.loaded.hold_reasons(key)))

    def held_names(self) -> set[str]:
        """Return the names of held records without an accepted sandbox."""
        known = {*self._store.records, *self._store.deleted}
        replicated = {name.rpartition("-")[0] for name in known}
        held = set() if self._last.loaded.fatal else set(self._last.loaded.held) - replicated
        return {*held, *self._store.held} - known

    def env_paths(self) -> set[Path]:
        """Return every env file that an accepted record names."""
        named = (record.spec.env_file for record in self._store.records.values())
        return {Path(path) for path in named if path is not None}

    async def read(self, *, allow_mass_delete: bool = False) -> SyncResult:
        """Read the file, and accept its valid records. The file's content raises nothing."""
        async with self._lock:
            loaded = await load_in_time(self._calls, self.path, defaults_of(self._settings))
            result = self._accept(loaded, allow_mass_delete=allow_mass_delete)
            self._secrets.renew()
            # Without an await in between: after a kill, the database has both or neither.
            self._report_changes(result, loaded, confirmed=allow_mass_delete)
            former, self._last = self._last, _Last(loaded, result.held_deletions)
            self._was_read = True
            edited = await self._env_files.refresh(self.env_paths())
            self._secrets.renew()
            for record in self._store.records.values():
                env_file = record.spec.env_file
                if env_file in edited:
                    self._enqueue(record.name, Priority.USER)
                    if edited[env_file]:
                        cause = f"its env_file {env_file} changed"
                        self._report_record(events.RecordChanged, record.name, cause)
            errors = env_file_errors(loaded.records.values(), self._env_files.errors)
            self._last.diagnostics = loaded.diagnostics + errors
            result = replace(result, diagnostics=self._last.diagnostics)
            self._report_problems(result, loaded, former)
            for name in {*self._store.records, *former.loaded.held, *loaded.held}:
                if former.loaded.is_held(name) != loaded.is_held(name):
                    self._enqueue(name, Priority.USER)
            return result

    async def follow(self) -> None:
        """Read the file whenever it or an env file changes, until cancelled."""
        rescan = self._settings.rescan_interval
        watch = Watch(self.path, self.env_paths, rescan=rescan, calls=self._calls)
        with activity("manifest-watch"):
            async with aclosing(watch.changes()) as changes:
                async for _ in changes:
                    pause = _RETRY
                    with waiting(_MAX_READ):
                        await self.read()
                    while self.must_retry:
                        await asyncio.sleep(pause)
                        pause = min(pause * 2, _MAX_RETRY)
                        with waiting(_MAX_READ):
                            await self.read()
                    if watch.problem:
                        path, problem = str(self.path), watch.problem
                        event = events.ManifestWatchFailed(path=path, error=problem)
                        self._recorder.complain(event)
                    else:
                        self._recorder.resolve(events.ManifestWatchFailed)

    def _accept(self, loaded: Loaded, *, allow_mass_delete: bool) -> SyncResult:
        if loaded.fatal:
            return SyncResult(loaded.diagnostics, held_deletions=self._last.held_deletions)
        known = {*self._store.records, *self._store.held}
        gone = sorted(n for n in known if n not in loaded.records and not loaded.is_held(n))
        held_deletions: tuple[str, ...] = ()
        if not allow_mass_delete:
            settings = self._settings
            count, percent = settings.brake_count, settings.brake_percent
            total = len(self._store.records)
            if loaded.empty or mass_delete_guard_engages(
                total, len(gone), count=count, percent=percent
            ):
                held_deletions = tuple(gone)
            if loaded.empty:
                # An empty file declares nothing, not even that nothing is desired.
                return SyncResult(loaded.diagnostics, held_deletions=held_deletions)
        clock = self._store.clock
        today = clock.date(clock())
        records = {
            name: Record(name, declared.spec_name, declared.state, declared.spec, today)
            for name, declared in loaded.records.items()
        }
        changes = self._store.accept(records, [] if held_deletions else gone)
        for name in changes.removed:
            # The retention of its workspace begins now.
            default = naming.volume_name(self._settings.container_name_prefix, name)
            retain = self._store.deleted[name].retain
            for volume in self._store.claim(name).volumes or (default,):
                # The note of an earlier deletion does not apply to this one.
                self._store.drop_orphan("volume", volume)
                self._store.note_orphan(
                    "volume", volume, sandbox=name, since=clock(), retain=retain, confirmed=True
                )
        for name in changes.added | changes.changed | changes.removed:
            self._enqueue(name, Priority.USER)
        return SyncResult(
            loaded.diagnostics, changes.added, changes.changed, changes.removed, held_deletions
        )

    def _report_changes(self, result: SyncResult, loaded: Loaded, *, confirmed: bool) -> None:
        cause = f"{self.path} was edited"
        if not self._was_read:
            cause = f"{self.path} was read at startup"
        for name in sorted(result.added):
            self._report_record(events.RecordAdded, name, cause)
        for name in sorted(result.changed):
            self._report_record(events.RecordChanged, name, cause)
        if confirmed and self._last.held_deletions:
            cause = "the deletions were confirmed"
        for name in sorted(result.removed):
            self._recorder.tell(events.RecordDeleted(sandbox=name, cause=cause))
        in_force = not loaded.fatal and (confirmed or not loaded.empty)
        if result.changes or (in_force and not self._was_read):
            self._report_loaded()

    def _report_record(
        self, event: type[events.RecordAdded | events.RecordChanged], name: str, cause: str
    ) -> None:
        record = self._store.records[name]
        spec, state = record.spec_name, str(record.state)
        self._recorder.tell(event(sandbox=name, cause=cause, spec=spec, desired=state))

    def _report_loaded(self) -> None:
        sandboxes = len(self._store.records)
        self._recorder.log(events.ManifestLoaded(path=str(self.path), sandboxes=sandboxes))

    def _report_problems(self, result: SyncResult, loaded: Loaded, former: _Last) -> None:
        """Log the problems and the held deletions that differ from those of the last read."""
        if result.diagnostics != former.diagnostics:
            event = events.ManifestRejected if loaded.fatal else events.ManifestHeld
            for it in result.diagnostics:
                location = f"{it.file}:{it.line}:{it.column}"
                self._recorder.log(event(path=it.file, location=location, error=str(it)))
            if not result.diagnostics and not result.changes:
                self._report_loaded()
        if result.held_deletions == former.held_deletions:
            return
        if result.held_deletions:
            self._recorder.log(
                events.ManifestBrake(
                    path=str(self.path),
                    deletions=len(result.held_deletions),
                    of=len(self._store.records),
                    names=list(result.held_deletions[:_MAX_NAMES]),
                    hint="confirm with: reconciler apply --allow-mass-delete",
                )
            )
        else:
            confirmed = result.removed.issuperset(former.held_deletions)
            why = "confirmed" if confirmed else "the records are back in the file"
            deletions = len(former.held_deletions)
            self._recorder.log(events.ManifestBrakeReleased(deletions=deletions, why=why))


async def validate(path: Path, defaults: SpecDefaults) -> tuple[Loaded, tuple[Diagnostic, ...]]:
    """Load the desired file; return it with all its problems and those of its env files."""
    calls = BoundedCalls()
    loaded = await load_in_time(calls, path, defaults)
    files = await read_env_files(calls, loaded.env_paths())
    errors = {path: it for path, it in files.items() if isinstance(it, ManifestError)}
    return loaded, loaded.diagnostics + env_file_errors(loaded.records.values(), errors)


async def load_in_time(calls: BoundedCalls, path: Path, defaults: SpecDefaults) -> Loaded:
    """Load the desired file; fatal and to be retried if its file system does not respond."""
    try:
        contents = await calls.run(path, read_contents, path)
        return await in_thread(parse, contents, defaults)
    except OSError as error:
        return failed(unreadable(path, error))


def defaults_of(settings: Settings) -> SpecDefaults:
    """Return the defaults that the settings put below every spec."""
    return SpecDefaults(
        mounts=settings.mounts,
        exposed_ports=settings.exposed_ports,
        health_check_path=settings.health_check_path,
    )
