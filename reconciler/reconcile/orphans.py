"""The garbage collector's books: what belongs to no record, and since when.

Removing it is a step like any other, decided and done in the key's own pass, so that a record which
comes back never meets the removal of its own things.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.core.model import Fate
from reconciler.core.replacement import surplus_volumes, wanted_volume
from reconciler.core.units import FOREVER, iso, parse_retain
from reconciler.reconcile.mass_delete_guard import HINT
from reconciler.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Collection

    from reconciler.core.model import Snapshot, Volume
    from reconciler.store.store import Store
    from reconciler.store.tables import OrphanKind
    from reconciler.telemetry.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Garbage:
    """One orphan. Times are observed seconds; ``remove_at`` None: it is kept.

    ``held``: until its removal is confirmed.
    """

    kind: OrphanKind
    name: str
    sandbox: str
    since: float
    remove_at: float | None
    why: str
    held: bool


class OrphanTracker:
    """Notes orphans durably.

    ``gc_grace`` is in seconds; ``volume_retain`` (seconds, None: for ever) is for volumes that
    nothing says how long to keep.
    """

    def __init__(
        self,
        store: Store,
        *,
        recorder: Recorder,
        gc_grace: float,
        volume_retain: float | None,
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._gc_grace = gc_grace
        self._volume_retain = volume_retain

    def note(self, snapshot: Snapshot) -> bool:
        """Bring the books in line with what is seen under the key; says whether they changed."""
        released = self._release(snapshot)
        noted = snapshot.may_collect and any(
            [self._note_containers(snapshot), self._note_volumes(snapshot)]
        )
        return released or noted

    def _release(self, snapshot: Snapshot) -> bool:
        wanted = wanted_volume(snapshot)
        claimed = wanted is not None and wanted in snapshot.orphans.volumes
        if wanted is not None and claimed:
            self._store.drop_orphan("volume", wanted)
            self._recorder.tell(
                events.VolumeClaimed(
                    sandbox=snapshot.key, cause="its record came back in time", volume=wanted
                )
            )
        ours = snapshot.desired is not None or snapshot.fate is Fate.DELETED
        for container_id in snapshot.orphans.containers if ours else ():
            self._store.drop_orphan("container", container_id)
        return claimed or (ours and bool(snapshot.orphans.containers))

    def _note_containers(self, snapshot: Snapshot) -> bool:
        if snapshot.desired is not None or snapshot.fate is Fate.DELETED:
            return False
        fresh = [c for c in snapshot.observed.containers if c.id not in snapshot.orphans.containers]
        for container in fresh:
            lost = container.owner != self._store.owner
            self._note("container", container.id, snapshot, None, lost=lost)
            self._recorder.tell(
                events.GarbageFound(
                    sandbox=snapshot.key,
                    cause="it belongs to no record",
                    kind="container",
                    name=container.name,
                    remove_in=self._gc_grace,
                )
            )
        return bool(fresh)

    def _note_volumes(self, snapshot: Snapshot) -> bool:
        fresh = [v for v in surplus_volumes(snapshot) if v.name not in snapshot.orphans.volumes]
        for volume in fresh:
            retain = self._retain(snapshot, volume)
            # An edit that passed the guard took the record or its workspace out.
            asked_for = snapshot.desired is not None or snapshot.fate is Fate.DELETED
            lost = volume.owner != self._store.owner
            self._note("volume", volume.name, snapshot, retain, confirmed=asked_for, lost=lost)
            self._report_orphan(snapshot, volume, snapshot.now, retain)
        return bool(fresh)

    def report_kept(self, snapshot: Snapshot) -> None:
        """Report the workspaces of a sandbox whose deletion is done."""
        for volume in surplus_volumes(snapshot):
            since = snapshot.orphans.volumes.get(volume.name, snapshot.now)
            self._report_orphan(snapshot, volume, since, self._retain(snapshot, volume))

    def _report_orphan(
        self, snapshot: Snapshot, volume: Volume, since: float, retain: float | None
    ) -> None:
        deleted = snapshot.fate is Fate.DELETED
        self._recorder.tell(
            events.VolumeOrphaned(
                sandbox=snapshot.key,
                cause="its record was taken out" if deleted else "no record wants it",
                volume=volume.name,
                kept_until=None if retain is None else iso(self._store.clock.date(since + retain)),
            )
        )

    def _note(
        self,
        kind: OrphanKind,
        key: str,
        snapshot: Snapshot,
        retain: float | None,
        *,
        confirmed: bool = False,
        lost: bool = False,
    ) -> None:
        self._store.note_orphan(
            kind,
            key,
            sandbox=snapshot.key,
            since=snapshot.now,
            retain=retain,
            confirmed=confirmed,
            lost=lost,
        )

    def sweep(self, containers: Collection[str], volumes: Collection[str] | None) -> None:
        """Forget the orphans that are gone, and the keys of sandboxes of which nothing is left.

        ``volumes`` is None where it is not known which there are.
        """
        for container_id in set(self._store.orphans["container"]).difference(containers):
            self._store.drop_orphan("container", container_id)
        gone = set() if volumes is None else set(self._store.orphans["volume"]).difference(volumes)
        for name in gone:
            sandbox = self._store.orphans["volume"][name].sandbox
            self._store.drop_orphan("volume", name)
            self._store.drop_key(sandbox)

    def _retain(self, snapshot: Snapshot, volume: Volume) -> float | None:
        if volume.name in snapshot.orphans.retain:
            return snapshot.orphans.retain[volume.name]
        tombstone = self._store.deleted.get(snapshot.key)
        if tombstone is not None:
            return tombstone.retain
        try:
            labelled = parse_retain(volume.retain) if volume.retain else self._volume_retain
        except ValueError:
            return self._volume_retain
        return None if labelled == FOREVER or labelled is None else float(labelled)

    def report(self, snapshot: Snapshot) -> list[Garbage]:
        """What under this key nothing asks for, and what will become of it."""
        return [*self._garbage_containers(snapshot), *self._garbage_volumes(snapshot)]

    def _garbage_containers(self, snapshot: Snapshot) -> list[Garbage]:
        if snapshot.desired is not None:
            return []
        deleted = snapshot.fate is Fate.DELETED
        why = "its record was taken out" if deleted else "it belongs to no record"
        grace = 0.0 if deleted else self._gc_grace
        found = []
        for container in snapshot.observed.containers:
            since = snapshot.orphans.containers.get(container.id, snapshot.now)
            held = container.id in snapshot.orphans.held
            remove_at = since + grace if deleted or (snapshot.may_collect and not held) else None
            found.append(
                Garbage(
                    "container",
                    container.name,
                    snapshot.key,
                    since,
                    remove_at,
                    _why(why, held=held),
                    held,
                )
            )
        return found

    def _garbage_volumes(self, snapshot: Snapshot) -> list[Garbage]:
        found = []
        for volume in surplus_volumes(snapshot):
            since = snapshot.orphans.volumes.get(volume.name, snapshot.now)
            retain = self._retain(snapshot, volume)
            held = volume.name in snapshot.orphans.held
            kept = retain is None or held or not snapshot.may_collect
            remove_at = None if kept else since + (retain or 0.0)
            why = _why("no record wants this workspace", held=held)
            found.append(Garbage("volume", volume.name, snapshot.key, since, remove_at, why, held))
        return found


def _why(why: str, *, held: bool) -> str:
    return f"{why}; held by the mass-delete guard, confirm with `{HINT}`" if held else why
