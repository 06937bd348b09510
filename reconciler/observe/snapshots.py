"""Puts together all that a decision about one key is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.core.container_config import InstanceConfig, spec_hash
from reconciler.core.errors import ReconcilerError
from reconciler.core.model import Desired, Fate, ImageState, Orphans, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reconciler.core.model import Observed, Verb
    from reconciler.core.spec import SandboxSpec
    from reconciler.manifest.env_files import EnvFiles
    from reconciler.observe.cache import Cache
    from reconciler.observe.informer import Informer
    from reconciler.observe.ownership import Ownership
    from reconciler.observe.probes import Prober
    from reconciler.resources.image_pulls import ImagePuller
    from reconciler.store.store import Store
    from reconciler.store.tables import Orphan, OrphanKind, Record


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the parts of a view come from; none of them has a side effect.

    ``hold`` says why nothing new may be made now, ``no_ports`` why a sandbox has no host port,
    ``held_because`` why the desired file's record cannot be used, ``blind`` why the engine cannot
    be asked; each is empty where all is well. ``open_circuits`` gives the verbs that are not tried
    now, each with the seconds until its next trial.
    """

    store: Store
    cache: Cache
    informer: Informer
    puller: ImagePuller
    prober: Prober
    open_circuits: Callable[[], Mapping[Verb, float]]
    env_files: EnvFiles
    instance_config: InstanceConfig
    ownership: Ownership
    orphan_held: Callable[[Orphan], bool]
    no_ports: Callable[[str], str]
    is_held: Callable[[str], bool]
    held_because: Callable[[str], str]
    hold: Callable[[], str]
    blind: Callable[[], str]
    gc_grace: float
    pause_grace: float


@dataclass(frozen=True, slots=True)
class _MadeFrom:
    """What a hash stands for. ``digest`` is that of the env file, None where there is none."""

    spec_hash: str
    spec: SandboxSpec
    digest: str | None


class SnapshotBuilder:
    """Views of every key, all from the same sources."""

    def __init__(self, sources: Sources) -> None:
        self._from = sources
        self._made_from: dict[str, dict[str, _MadeFrom]] = {}

    @property
    def now(self) -> float:
        """Observed seconds."""
        return self._from.store.clock()

    def keys(self) -> set[str]:
        """Every key that there is something to say of."""
        store = self._from.store
        return {*store.records, *store.deleted, *self._from.cache.keys()}

    def snapshot(self, key: str) -> Snapshot:
        """All that is known of the key now."""
        sources = self._from
        record = sources.store.records.get(key)
        if record is None:
            self._made_from.pop(key, None)
        observed = sources.cache.observed(key)
        now = self.now
        return Snapshot(
            key=key,
            prefix=sources.instance_config.prefix,
            desired=self._desired(record, observed) if record else None,
            observed=observed,
            now=now,
            memory=sources.store.memory(key),
            health=sources.prober.health(key),
            image=self._image(key, record),
            fate=Fate.DELETED if key in sources.store.deleted else Fate.UNKNOWN,
            orphans=self._orphans(observed),
            gc_grace=sources.gc_grace,
            pause_grace=sources.pause_grace,
            may_collect=self.may_collect(key),
            hung={verb: now + seconds for verb, seconds in sources.open_circuits().items()},
            hold=sources.hold(),
            held=sources.held_because(key),
            unseen=sources.cache.unseen(key),
            blind=sources.blind(),
            sees_volumes=sources.cache.sees_volumes,
        )

    def may_collect(self, key: str) -> bool:
        """Whether it is certain that nothing wants what is under the key.

        It is not while the last list failed, before any desired file was ever accepted, and while
        the file names the key in a record that cannot be read.
        """
        sources = self._from
        known = sources.informer.complete and sources.store.desired_known
        return known and not sources.is_held(key) and key not in sources.store.held

    def _image(self, key: str, record: Record | None) -> ImageState:
        return self._from.puller.state(key, record.spec.image) if record else ImageState.UNKNOWN

    def _desired(self, record: Record, observed: Observed) -> Desired:
        made_from, env_problem = self._hash(record, {c.spec_hash for c in observed.containers})
        return Desired(
            name=record.name,
            state=record.state,
            spec_name=record.spec_name,
            spec=record.spec,
            spec_hash=made_from.spec_hash if made_from else None,
            identity=self._from.store.identity(record.name),
            problem=(
                self._from.ownership.problem(record.name)
                or env_problem
                or self._from.no_ports(record.name)
                or None
            ),
            changes=self._changes(record.name, made_from) if made_from else {},
        )

    def _hash(self, record: Record, in_use: set[str]) -> tuple[_MadeFrom | None, str | None]:
        digest = None
        if record.spec.env_file is not None:
            file = self._from.env_files.get(record.spec.env_file)
            if isinstance(file, ReconcilerError):
                return None, str(file)
            digest = file.digest
        seen = self._made_from.setdefault(record.name, {})
        last = next(reversed(seen.values()), None)
        if last is None or last.spec is not record.spec or last.digest != digest:
            hashed = spec_hash(record.spec, self._from.instance_config, digest)
            seen.pop(hashed, None)
            last = seen[hashed] = _MadeFrom(hashed, record.spec, digest)
        for former in seen.keys() - in_use - {last.spec_hash}:
            del seen[former]
        return last, None

    def _changes(self, name: str, now: _MadeFrom) -> dict[str, str]:
        return {
            former.spec_hash: f"its env_file {now.spec.env_file} changed"
            if former.spec == now.spec
            else "the spec changed"
            for former in self._made_from[name].values()
            if former is not now
        }

    def _orphans(self, observed: Observed) -> Orphans:
        containers = self._known("container", [c.id for c in observed.containers])
        volumes = self._known("volume", [v.name for v in observed.volumes])
        return Orphans(
            containers={key: orphan.since for key, orphan in containers.items()},
            volumes={key: orphan.since for key, orphan in volumes.items()},
            retain={key: orphan.retain for key, orphan in volumes.items()},
            held=frozenset(
                key
                for key, orphan in (*containers.items(), *volumes.items())
                if self._from.orphan_held(orphan)
            ),
        )

    def _known(self, kind: OrphanKind, ids: list[str]) -> Mapping[str, Orphan]:
        known = self._from.store.orphans[kind]
        return {id_: known[id_] for id_ in ids if id_ in known}
