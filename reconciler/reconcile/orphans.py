"""Track orphans: what no record wants, and since when.

An orphan is removed by an action like any other, in the pass of its key. So a record that returns
never races with the removal of its objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.core.units import FOREVER, iso, parse_retain
from reconciler.reconcile.mass_delete_guard import HINT
from reconciler.telemetry import events

if TYPE_CHECKING:
    from collections.abc import Collection

    from reconciler.core.observed import Volume
    from reconciler.core.snapshot import Snapshot
    from reconciler.store.store import Store
    from reconciler.store.tables import OrphanKind
    from reconciler.telemetry.recorder import Recorder


@dataclass(frozen=True, slots=True)
class Garbage:
    """One orphan. Times are observed seconds; ``remove_at`` None: it is kept.

    ``held``: the mass-delete guard holds it back until a user confirms.
    """

    kind: OrphanKind
    name: str
    sandbox: str
    since: float
    remove_at: float | None
    why: str
    held: bool


class OrphanTracker:
    """Records orphans in the store.

    ``gc_grace`` is in seconds. ``volume_retain`` (seconds; None: forever) is for volumes without a
    retention label.
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
        """Record the orphans under the key; return whether that changed anything."""
        known = snapshot.desired is not None or snapshot.deleted
        wanted = snapshot.wanted_volume
        changed = known and bool(snapshot.orphans.containers)
        if wanted is not None and wanted in snapshot.orphans.volumes:
            changed = True
            self._store.drop_orphan("volume", wanted)
            self._recorder.tell(
                events.VolumeClaimed(
                    sandbox=snapshot.key, cause="its record returned in time", volume=wanted
                )
            )
        for container_id in snapshot.orphans.containers if known else ():
            self._store.drop_orphan("container", container_id)
        if not snapshot.may_collect:
            return changed
        for container in () if known else snapshot.observed.containers:
            if container.id in snapshot.orphans.containers:
                continue
            changed = True
            self._store.note_orphan(
                "container",
                container.id,
                sandbox=snapshot.key,
                since=snapshot.now,
                retain=None,
                lost=container.owner != self._store.owner,
            )
            self._recorder.tell(
                events.GarbageFound(
                    sandbox=snapshot.key,
                    cause="no record wants it",
                    kind="container",
                    name=container.name,
                    remove_in=self._gc_grace,
                )
            )
        for volume in snapshot.surplus_volumes:
            if volume.name in snapshot.orphans.volumes:
                continue
            changed = True
            retain = self._retain(snapshot, volume)
            self._store.note_orphan(
                "volume",
                volume.name,
                sandbox=snapshot.key,
                since=snapshot.now,
                retain=retain,
                # An edit that passed the guard removed the record or its workspace.
                confirmed=known,
                lost=volume.owner != self._store.owner,
            )
            self._report_orphan(snapshot, volume, snapshot.now, retain)
        return changed

    def report_kept(self, snapshot: Snapshot) -> None:
        """Report the workspaces that remain after a sandbox was deleted."""
        for volume in snapshot.surplus_volumes:
            since = snapshot.orphans.volumes.get(volume.name, snapshot.now)
            self._report_orphan(snapshot, volume, since, self._retain(snapshot, volume))

    def _report_orphan(
        self, snapshot: Snapshot, volume: Volume, since: float, retain: float | None
    ) -> None:
        deleted = snapshot.deleted
        self._recorder.tell(
            events.VolumeOrphaned(
                sandbox=snapshot.key,
                cause="its record was removed" if deleted else "no record wants it",
                volume=volume.name,
                kept_until=None if retain is None else iso(self._store.clock.date(since + retain)),
            )
        )

    def sweep(self, containers: Collection[str], volumes: Collection[str] | None) -> None:
        """Forget orphans that no longer exist, and the session keys of their sandboxes.

        Args:
            containers: The ids of all containers.
            volumes: The names of all volumes; None: unknown.
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
        """Return the orphans under the key, and when each will be removed."""
        key, now, orphans = snapshot.key, snapshot.now, snapshot.orphans
        deleted = snapshot.deleted
        found = []
        for container in () if snapshot.desired else snapshot.observed.containers:
            since = orphans.containers.get(container.id, now)
            held = container.id in orphans.held
            due = deleted or (snapshot.may_collect and not held)
            grace = 0.0 if deleted else self._gc_grace
            remove_at = since + grace if due else None
            why = _why("its record was removed" if deleted else "no record wants it", held=held)
            found.append(Garbage("container", container.name, key, since, remove_at, why, held))
        for volume in snapshot.surplus_volumes:
            since = orphans.volumes.get(volume.name, now)
            held = volume.name in orphans.held
            retain = self._retain(snapshot, volume)
            kept = retain is None or held or not snapshot.may_collect
            remove_at = None if kept else since + (retain or 0.0)
            why = _why("no record wants this workspace", held=held)
            found.append(Garbage("volume", volume.name, key, since, remove_at, why, held))
        return found


def _why(why: str, *, held: bool) -> str:
    return f"{why}; held by the mass-delete guard, confirm with `{HINT}`" if held else why
