"""Snapshots: everything that a decision about one key is made from, built without side effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.core.action import Blocker, Source, Verb
from reconciler.core.container_config import InstanceConfig, spec_hash
from reconciler.core.errors import ReconcilerError
from reconciler.core.snapshot import Desired, ImageState, Orphans, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reconciler.core.observed import Observed
    from reconciler.core.spec import SandboxSpec
    from reconciler.manifest.env_files import EnvFile, EnvFiles
    from reconciler.manifest.sync import ManifestSync
    from reconciler.observe.cache import Cache
    from reconciler.observe.informer import Informer
    from reconciler.observe.ownership import Ownership
    from reconciler.observe.probes import Prober
    from reconciler.resources.disk_guard import DiskGuard
    from reconciler.resources.image_pulls import ImagePuller
    from reconciler.store.store import Store
    from reconciler.store.tables import Orphan, OrphanKind, Record


@dataclass(frozen=True, slots=True)
class _HashInput:
    """What a spec hash was computed from. ``digest`` is the env file's; None: there is none."""

    spec_hash: str
    spec: SandboxSpec
    digest: str | None


class SnapshotBuilder:
    """Builds snapshots of any key.

    ``open_circuits`` returns the seconds until the next try of each verb with an open circuit.
    ``is_orphan_held`` tells whether the mass-delete guard holds an orphan back. ``port_problem``
    returns why a sandbox has no host port; empty if it has.
    """

    def __init__(
        self,
        *,
        store: Store,
        cache: Cache,
        informer: Informer,
        puller: ImagePuller,
        prober: Prober,
        disk: DiskGuard,
        manifest_sync: ManifestSync,
        env_files: EnvFiles,
        instance_config: InstanceConfig,
        ownership: Ownership,
        open_circuits: Callable[[], Mapping[Verb, float]],
        is_orphan_held: Callable[[Orphan], bool],
        port_problem: Callable[[str], str],
        gc_grace: float,
        pause_grace: float,
    ) -> None:
        self._store = store
        self._cache = cache
        self._informer = informer
        self._puller = puller
        self._prober = prober
        self._disk = disk
        self._manifest_sync = manifest_sync
        self._env_files = env_files
        self._instance_config = instance_config
        self._ownership = ownership
        self._open_circuits = open_circuits
        self._is_orphan_held = is_orphan_held
        self._port_problem = port_problem
        self._gc_grace = gc_grace
        self._pause_grace = pause_grace
        # By key and spec hash: the record's present hash last, and those of its containers.
        self._hashed: dict[str, dict[str, _HashInput]] = {}

    @property
    def now(self) -> float:
        """Observed seconds."""
        return self._store.clock()

    def keys(self) -> set[str]:
        """Return every key with a record, a deletion or an object of the engine."""
        return {*self._store.records, *self._store.deleted, *self._cache.keys()}

    def snapshot(self, key: str) -> Snapshot:
        """Take the snapshot of one key."""
        record = self._store.records.get(key)
        if record is None:
            self._hashed.pop(key, None)
        observed = self._cache.observed(key)
        path = record.spec.env_file if record else None
        env_file = self._env_files.get(path) if path is not None else None
        image = self._puller.state(key, record.spec.image) if record else ImageState.UNKNOWN
        containers = self._known_orphans("container", [c.id for c in observed.containers])
        volumes = self._known_orphans("volume", [v.name for v in observed.volumes])
        orphans = (*containers.items(), *volumes.items())
        now = self.now
        circuits = (
            Blocker(
                verb,
                now + seconds,
                f"circuit open for {verb}: the engine hangs; restart it",
                Source.CIRCUIT,
            )
            for verb, seconds in self._open_circuits().items()
        )
        return Snapshot(
            key=key,
            prefix=self._instance_config.prefix,
            desired=self._desired(record, env_file, observed) if record else None,
            observed=observed,
            now=now,
            memory=self._store.memory(key),
            health=self._prober.health(key),
            image=image,
            deleted=key in self._store.deleted,
            orphans=Orphans(
                containers={id_: orphan.since for id_, orphan in containers.items()},
                volumes={name: orphan.since for name, orphan in volumes.items()},
                retain={name: orphan.retain for name, orphan in volumes.items()},
                held=frozenset(id_ for id_, orphan in orphans if self._is_orphan_held(orphan)),
            ),
            gc_grace=self._gc_grace,
            pause_grace=self._pause_grace,
            may_collect=self.may_collect(key),
            blockers=(*self._blockers(key, record, env_file), *circuits),
            sees_volumes=self._cache.sees_volumes,
        )

    def may_collect(self, key: str) -> bool:
        """Whether it is certain that no record wants what is under the key.

        It is not certain while the last list failed, before any desired file was accepted, and
        while the file has a record of that name that is invalid.
        """
        known = self._informer.complete and self._store.desired_known
        return known and not self._manifest_sync.is_held(key) and key not in self._store.held

    def _desired(
        self, record: Record, env_file: EnvFile | ReconcilerError | None, observed: Observed
    ) -> Desired:
        name, hashed, changes = record.name, None, {}
        if not isinstance(env_file, ReconcilerError):
            digest = env_file.digest if env_file else None
            # The spec is hashed unless it is unchanged; hashes that no container has are forgotten.
            known = self._hashed.setdefault(name, {})
            hashed = next(reversed(known.values()), None)
            if hashed is None or hashed.spec is not record.spec or hashed.digest != digest:
                present = spec_hash(record.spec, self._instance_config, digest)
                known.pop(present, None)
                hashed = known[present] = _HashInput(present, record.spec, digest)
            in_use = {hashed.spec_hash, *(c.spec_hash for c in observed.containers)}
            for former in known.keys() - in_use:
                del known[former]
            changes = {
                former.spec_hash: f"its env_file {record.spec.env_file} changed"
                if former.spec == hashed.spec
                else "the spec changed"
                for former in known.values()
                if former is not hashed
            }
        return Desired(
            name=name,
            state=record.state,
            spec_name=record.spec_name,
            spec=record.spec,
            spec_hash=hashed.spec_hash if hashed else None,
            identity=self._store.identity(name),
            changes=changes,
        )

    def _blockers(
        self, key: str, record: Record | None, env_file: EnvFile | ReconcilerError | None
    ) -> Iterator[Blocker]:
        """Yield what prevents creating containers, and what is only reported, by importance."""
        reasons = {
            Source.ENGINE: "" if self._informer.synced.is_set() else self._informer.error,
            Source.INSPECT: self._cache.inspection_error(key),
            Source.RECORD: self._manifest_sync.held_because(key),
        }
        if record is not None:
            reasons |= {
                Source.INSTANCE: self._ownership.problem(key),
                Source.ENV_FILE: str(env_file) if isinstance(env_file, ReconcilerError) else "",
                Source.PORTS: self._port_problem(key),
            }
        reasons[Source.DISK] = self._disk.hold
        for source, reason in reasons.items():
            verb = None if source in {Source.ENGINE, Source.RECORD} else Verb.CREATE
            if reason:
                yield Blocker(verb, None, reason, source)

    def _known_orphans(self, kind: OrphanKind, ids: list[str]) -> Mapping[str, Orphan]:
        known = self._store.orphans[kind]
        return {id_: known[id_] for id_ in ids if id_ in known}
