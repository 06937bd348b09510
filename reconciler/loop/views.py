"""Puts together all that a decision about one key is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.core.blueprint import Surroundings, spec_hash
from reconciler.core.errors import ReconcilerError
from reconciler.core.model import Desired, Fate, Identity, ImageState, Orphans, View

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reconciler.core.model import Observed
    from reconciler.core.spec import SandboxSpec
    from reconciler.loop.cache import Cache
    from reconciler.loop.env_files import EnvFiles
    from reconciler.loop.guard import Guard
    from reconciler.loop.informer import Informer
    from reconciler.loop.lanes import Lanes
    from reconciler.loop.prober import Prober
    from reconciler.loop.puller import Puller
    from reconciler.store.rows import Orphan, OrphanKind, Record
    from reconciler.store.store import Store


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the parts of a view come from. ``lease`` gives a sandbox its identity, or None.

    ``hold`` says why nothing new may be made now, or nothing.
    """

    store: Store
    cache: Cache
    informer: Informer
    puller: Puller
    prober: Prober
    lanes: Lanes
    env_files: EnvFiles
    around: Surroundings
    lease: Callable[[str, SandboxSpec], Identity | None]
    guard: Guard
    is_held: Callable[[str], bool]
    hold: Callable[[], str]
    gc_grace: float


class Views:
    """Views of every key, all from the same sources."""

    def __init__(self, sources: Sources) -> None:
        self._from = sources
        self._hashes: dict[str, tuple[Record, str | None, str]] = {}

    @property
    def now(self) -> float:
        """Observed seconds."""
        return self._from.store.clock()

    def keys(self) -> set[str]:
        """Every key that there is something to say of."""
        store = self._from.store
        return {*store.records, *store.deleted, *self._from.cache.keys()}

    def view(self, key: str) -> View:
        """All that is known of the key now."""
        sources = self._from
        record = sources.store.records.get(key)
        if record is None:
            self._hashes.pop(key, None)
        observed = sources.cache.observed(key)
        now = self.now
        return View(
            key=key,
            prefix=sources.around.prefix,
            desired=self._desired(record) if record else None,
            observed=observed,
            now=now,
            memory=sources.store.memory(key),
            health=sources.prober.health(key),
            image=self._image(key, record),
            fate=Fate.DELETED if key in sources.store.deleted else Fate.UNKNOWN,
            orphans=self._orphans(observed),
            gc_grace=sources.gc_grace,
            may_collect=self.may_collect(key),
            hung={verb: now + seconds for verb, seconds in sources.lanes.hung().items()},
            hold=sources.hold(),
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

    def _desired(self, record: Record) -> Desired:
        hashed, env_problem = self._hash(record)
        identity, lease_problem = self._identity(record)
        return Desired(
            name=record.name,
            state=record.state,
            spec_name=record.spec_name,
            spec=record.spec,
            spec_hash=hashed,
            identity=identity,
            problem=self._from.cache.unreadable(record.name) or env_problem or lease_problem,
        )

    def _hash(self, record: Record) -> tuple[str | None, str | None]:
        digest = None
        if record.spec.env_file is not None:
            file = self._from.env_files.get(record.spec.env_file)
            if isinstance(file, ReconcilerError):
                return None, str(file)
            digest = file.digest
        known = self._hashes.get(record.name)
        if known is None or known[0] is not record or known[1] != digest:
            hashed = spec_hash(record.spec, self._from.around, digest)
            known = self._hashes[record.name] = (record, digest, hashed)
        return known[2], None

    def _identity(self, record: Record) -> tuple[Identity | None, str | None]:
        try:
            return self._from.lease(record.name, record.spec), None
        except ReconcilerError as error:
            return None, str(error)

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
                if self._from.guard.holds(orphan)
            ),
        )

    def _known(self, kind: OrphanKind, ids: list[str]) -> Mapping[str, Orphan]:
        known = self._from.store.orphans[kind]
        return {id_: known[id_] for id_ in ids if id_ in known}
