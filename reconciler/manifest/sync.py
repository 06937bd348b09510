"""The way in for what users declare: read the file, keep what is good, hold what is not."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconciler.core import naming, policy
from reconciler.core.errors import ManifestError
from reconciler.core.priority import Priority
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
from reconciler.progress import activity, waiting
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
    from reconciler.store.tables import Changes
    from reconciler.telemetry.recorder import Recorder

# Seconds. A reading may have to wait for one that another caller asked for.
_LONGEST_READING: Final = 60.0
_READ_AGAIN: Final = 1.0
_READ_AGAIN_LONGEST: Final = 10.0


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What became of one reading of the desired file.

    ``diagnostics`` has what is wrong with it, and with the env files that it names. ``braked`` are
    the sandboxes whose deletion waits to be confirmed.
    """

    diagnostics: tuple[Diagnostic, ...] = ()
    added: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    held_deletions: tuple[str, ...] = ()

    @property
    def changes(self) -> frozenset[str]:
        """Every record that is not what it was."""
        return self.added | self.changed | self.removed


@dataclass(slots=True)
class _Last:
    """What the last reading found; a reading that finds the same again says nothing."""

    loaded: Loaded = field(default_factory=Loaded)
    held_deletions: tuple[str, ...] = ()
    complaint: tuple[Diagnostic, ...] = ()


class ManifestSync:
    """Takes the desired file into the store."""

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
        """What is wrong with the file as it is now, without its env files."""
        return self._last.loaded.diagnostics

    @property
    def held_deletions(self) -> tuple[str, ...]:
        """The sandboxes whose deletion waits to be confirmed."""
        return self._last.held_deletions

    @property
    def must_retry(self) -> bool:
        """Whether something could not be read now, and is to be tried again."""
        return self._last.loaded.must_retry or self._env_files.must_retry

    def is_held(self, key: str) -> bool:
        """Whether the file names the sandbox in a way that cannot be read."""
        return self._last.loaded.fatal or self._last.loaded.is_held(key)

    def held_because(self, key: str) -> str:
        """Return why the file's record of that sandbox cannot be used; empty where it can be.

        A file that cannot be read at all holds back every record, and is no fault of a sandbox.
        """
        if unreadable := self._store.held.get(key):
            return f"its stored record cannot be read by this release: {unreadable}"
        if self._last.loaded.fatal:
            return ""
        return "; ".join(map(str, self._last.loaded.hold_reasons(key)))

    def held_names(self) -> set[str]:
        """Return the names of held records that stand for no sandbox in force."""
        known = {*self._store.records, *self._store.deleted}
        replicated = {name.rpartition("-")[0] for name in known}
        held = set() if self._last.loaded.fatal else set(self._last.loaded.held) - replicated
        return {*held, *self._store.held} - known

    def env_paths(self) -> set[Path]:
        """Every env file that a record in force names."""
        named = (record.spec.env_file for record in self._store.records.values())
        return {Path(path) for path in named if path is not None}

    async def read(self, *, allow_mass_delete: bool = False) -> SyncResult:
        """Read the file and take in what is good of it. Never raises for what the file holds."""
        async with self._lock:
            loaded = await load_in_time(self._calls, self.path, defaults_of(self._settings))
            reading = self._take_in(loaded, allow_mass_delete=allow_mass_delete)
            self._secrets.renew()
            # In the same turn: a kill leaves both in the database, or neither.
            in_force = not loaded.fatal and (allow_mass_delete or not loaded.empty)
            self._report_changes(reading, confirmed=allow_mass_delete, in_force=in_force)
            former, self._last = self._last, _Last(loaded, reading.held_deletions)
            self._was_read = True
            await self._refresh_env_files()
            self._last.complaint = loaded.diagnostics + self._env_file_errors(loaded)
            reading = replace(reading, diagnostics=self._last.complaint)
            self._say(loaded, reading, former)
            self._enqueue_held(former.loaded, loaded)
            return reading

    async def follow(self) -> None:
        """Read the file whenever it or an env file changes, until cancelled."""
        rescan = self._settings.rescan_interval
        watch = Watch(self.path, self.env_paths, rescan=rescan, calls=self._calls)
        with activity("manifest-watch"):
            async with aclosing(watch.changes()) as changes:
                async for _ in changes:
                    await self._read_in_the_end()
                    self._report_watch(watch.problem)

    def _report_watch(self, problem: str) -> None:
        if problem:
            event = events.ManifestWatchFailed(path=str(self.path), error=problem)
            self._recorder.complain(event)
        else:
            self._recorder.resolve(events.ManifestWatchFailed)

    async def _read_in_the_end(self) -> None:
        pause = _READ_AGAIN
        with waiting(_LONGEST_READING):
            await self.read()
        while self.must_retry:
            await asyncio.sleep(pause)
            with waiting(_LONGEST_READING):
                await self.read()
            pause = min(pause * 2, _READ_AGAIN_LONGEST)

    def _take_in(self, loaded: Loaded, *, allow_mass_delete: bool) -> SyncResult:
        if loaded.fatal:
            return SyncResult(loaded.diagnostics, held_deletions=self._last.held_deletions)
        gone = self._gone(loaded)
        held_deletions = () if allow_mass_delete else self._braked(loaded, gone)
        removed = [] if held_deletions else gone
        if loaded.empty and not allow_mass_delete:
            # An empty file says nothing: not even that nothing is wanted.
            return SyncResult(loaded.diagnostics, held_deletions=held_deletions)
        changes = self._store.accept(self._records(loaded), removed)
        self._orphan_workspaces(changes)
        for name in changes.added | changes.changed | changes.removed:
            self._enqueue(name, Priority.USER)
        return SyncResult(
            loaded.diagnostics,
            changes.added,
            changes.changed,
            changes.removed,
            held_deletions,
        )

    def _gone(self, loaded: Loaded) -> list[str]:
        known = {*self._store.records, *self._store.held}
        return sorted(n for n in known if n not in loaded.records and not loaded.is_held(n))

    def _braked(self, loaded: Loaded, gone: list[str]) -> tuple[str, ...]:
        total = len(self._store.records)
        engages = policy.mass_delete_guard_engages(
            total,
            len(gone),
            count=self._settings.brake_count,
            percent=self._settings.brake_percent,
        )
        return tuple(gone) if loaded.empty or engages else ()

    def _records(self, loaded: Loaded) -> dict[str, Record]:
        clock = self._store.clock
        today = clock.date(clock())
        return {
            name: Record(name, declared.spec_name, declared.state, declared.spec, today)
            for name, declared in loaded.records.items()
        }

    def _orphan_workspaces(self, changes: Changes) -> None:
        """The time that a workspace is kept begins when its record is taken out."""
        for name in changes.removed:
            named = naming.volume_name(self._settings.container_name_prefix, name)
            for volume in self._store.claim(name).volumes or (named,):
                # A note of an earlier deletion says nothing of this one.
                self._store.drop_orphan("volume", volume)
                self._store.note_orphan(
                    "volume",
                    volume,
                    sandbox=name,
                    since=self._store.clock(),
                    retain=self._store.deleted[name].retain,
                    confirmed=True,
                )

    def _env_file_errors(self, loaded: Loaded) -> tuple[Diagnostic, ...]:
        return env_file_errors(loaded.records.values(), self._env_files.errors)

    async def _refresh_env_files(self) -> None:
        changed = await self._env_files.refresh(self.env_paths())
        self._secrets.renew()
        for record in self._store.records.values():
            if record.spec.env_file in changed:
                self._enqueue(record.name, Priority.USER)
                if changed[record.spec.env_file]:
                    self._report_record(
                        events.RecordChanged,
                        record.name,
                        f"its env_file {record.spec.env_file} changed",
                    )

    # --- what is said -------------------------------------------------------------------------

    def _say(self, loaded: Loaded, reading: SyncResult, former: _Last) -> None:
        if reading.diagnostics != former.complaint:
            self._say_diagnostics(reading, fatal=loaded.fatal)
            if not reading.diagnostics and not reading.changes:
                self._say_loaded()
        if reading.held_deletions != former.held_deletions:
            self._say_brake(reading, former.held_deletions)

    def _report_changes(self, reading: SyncResult, *, confirmed: bool, in_force: bool) -> None:
        why = f"{self.path} was edited" if self._was_read else f"{self.path} was read at the start"
        why_deleted = (
            "the deletions were confirmed" if confirmed and self._last.held_deletions else why
        )
        for names, event in (
            (reading.added, events.RecordAdded),
            (reading.changed, events.RecordChanged),
        ):
            for name in sorted(names):
                self._report_record(event, name, why)
        for name in sorted(reading.removed):
            self._recorder.tell(events.RecordDeleted(sandbox=name, cause=why_deleted))
        if reading.changes or (not self._was_read and in_force):
            self._say_loaded()

    def _report_record(
        self, event: type[events.RecordAdded | events.RecordChanged], name: str, cause: str
    ) -> None:
        record = self._store.records[name]
        spec, state = record.spec_name, str(record.state)
        self._recorder.tell(event(sandbox=name, cause=cause, spec=spec, desired=state))

    def _enqueue_held(self, former: Loaded, now: Loaded) -> None:
        """Have every sandbox looked at that is held back now and was not before, or no longer."""
        names = {*self._store.records, *former.held, *now.held}
        for name in names:
            if former.is_held(name) != now.is_held(name):
                self._enqueue(name, Priority.USER)

    def _say_diagnostics(self, reading: SyncResult, *, fatal: bool) -> None:
        event = events.ManifestRejected if fatal else events.ManifestHeld
        for diagnostic in reading.diagnostics:
            self._recorder.log(
                event(
                    path=diagnostic.file,
                    location=f"{diagnostic.file}:{diagnostic.line}:{diagnostic.column}",
                    error=str(diagnostic),
                )
            )

    def _say_loaded(self) -> None:
        sandboxes = len(self._store.records)
        self._recorder.log(events.ManifestLoaded(path=str(self.path), sandboxes=sandboxes))

    def _say_brake(self, reading: SyncResult, former: tuple[str, ...]) -> None:
        if not reading.held_deletions:
            why = "confirmed" if reading.removed.issuperset(former) else "taken back"
            self._recorder.log(events.ManifestBrakeReleased(deletions=len(former), why=why))
            return
        self._recorder.log(
            events.ManifestBrake(
                path=str(self.path),
                deletions=len(reading.held_deletions),
                of=len(self._store.records),
                names=list(reading.held_deletions[:20]),
                hint="confirm with: reconciler apply --allow-mass-delete",
            )
        )


async def validate(path: Path, defaults: SpecDefaults) -> tuple[Loaded, tuple[Diagnostic, ...]]:
    """What a daemon finds in the desired file, and all that is wrong with it and its env files."""
    calls = BoundedCalls()
    loaded = await load_in_time(calls, path, defaults)
    files = await read_env_files(calls, loaded.env_paths())
    refused = {path: it for path, it in files.items() if isinstance(it, ManifestError)}
    return loaded, loaded.diagnostics + env_file_errors(loaded.records.values(), refused)


async def load_in_time(calls: BoundedCalls, path: Path, defaults: SpecDefaults) -> Loaded:
    """The desired file; unusable for now where its file system does not answer."""
    try:
        contents = await calls.run(path, read_contents, path)
        return await in_thread(parse, contents, defaults)
    except OSError as error:
        return failed(unreadable(path, error))


def defaults_of(settings: Settings) -> SpecDefaults:
    """What the settings put below every spec."""
    return SpecDefaults(
        mounts=settings.mounts,
        exposed_ports=settings.exposed_ports,
        health_check_path=settings.health_check_path,
    )
