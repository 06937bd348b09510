"""The state in memory: records, identities, restart memory, orphans, claims, the ledger."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from reconciler.core.errors import StoreError
from reconciler.core.observed import Claim
from reconciler.core.restart import SandboxMemory
from reconciler.core.snapshot import Identity
from reconciler.store import tables
from reconciler.store.table import DirtyTable, Rows
from reconciler.store.tables import Changes, Orphan, OrphanKind, Record, Tombstone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reconciler.core.disk_pressure import PulledImage
    from reconciler.store.ledger import LedgerEntry, Pending
    from reconciler.store.observed_clock import ObservedClock

_DESIRED_KNOWN: Final = "desired-known"
_OBSERVED: Final = "observed-seconds"
# Observed seconds between two saves of the time: while there are orphans, and while there are none,
# when an idle daemon should not wake the disk.
_SAVE_EVERY: Final = 10.0
_SAVE_IDLE_EVERY: Final = 60.0
_OWNER: Final = "owner"
_OWNER_BYTES: Final = 8
_NO_MEMORY: Final = SandboxMemory()
_NO_CLAIM: Final = Claim()


class State:
    """Reads and changes, for one thread. They do no I/O and never fail because of the disk.

    Args:
        content: The loaded rows, by the name of their kind.
        ledger: Holds entries until they are durable.
        touched: Called after every change.
        make_clock: Returns a clock that continues from the observed seconds that were saved last.

    Attributes:
        clock: Observed seconds; all times here are by this clock.
        records: The declared records, by name.
        deleted: The deleted records whose objects are not all removed, by name.
        held: Names whose record this release cannot read, and why. How their sandboxes should be
            is unknown: they are left alone, and never collected.
        leased: Sandbox names by host port.
        orphans: Objects without a record, by kind, then by container id or volume name.
        unconfirmed: The sandboxes with orphans whose removal nobody confirmed, and their numbers.
        identities: The session keys and leases, by sandbox.
        claims: The engine's objects that were created for a sandbox, by the sandbox's name.
        claimed_volumes: Sandbox names by the names of their volumes.
        images: The images that this instance pulled, by id.
    """

    def __init__(
        self,
        content: Mapping[str, Rows],
        ledger: Pending,
        touched: Callable[[], None],
        make_clock: Callable[[float], ObservedClock],
    ) -> None:
        self._ledger, self._touched = ledger, touched
        self._tables: dict[str, DirtyTable[Any]] = {
            kind.name: DirtyTable(kind, content[kind.name], touched) for kind in tables.KINDS
        }
        self._records: DirtyTable[Record] = self._tables[tables.RECORDS.name]
        self._tombstones: DirtyTable[Tombstone] = self._tables[tables.TOMBSTONES.name]
        self._identities: DirtyTable[Identity] = self._tables[tables.IDENTITIES.name]
        self._memories: DirtyTable[SandboxMemory] = self._tables[tables.MEMORIES.name]
        self._claims: DirtyTable[Claim] = self._tables[tables.CLAIMS.name]
        self._facts: DirtyTable[str] = self._tables[tables.FACTS.name]
        self._images: DirtyTable[PulledImage] = self._tables[tables.IMAGES.name]
        self._orphans: dict[OrphanKind, DirtyTable[Orphan]] = {
            "container": self._tables[tables.ORPHAN_CONTAINERS.name],
            "volume": self._tables[tables.ORPHAN_VOLUMES.name],
        }
        self._saved = _seconds_in(self._facts.values.get(_OBSERVED, "0"))
        self.clock = make_clock(self._saved)
        self._leased = {
            port: name
            for name, identity in self._identities.values.items()
            for port in identity.ports.values()
        }
        self.records = self._records.values
        self.deleted = self._tombstones.values
        self.held = self._records.unreadable
        self.claims = self._claims.values
        self._claimed_volumes = {
            volume: sandbox for sandbox, claim in self.claims.items() for volume in claim.volumes
        }
        self.claimed_volumes: Mapping[str, str] = MappingProxyType(self._claimed_volumes)
        self.images = self._images.values
        self.identities = self._identities.values
        self.leased: Mapping[int, str] = MappingProxyType(self._leased)
        self.orphans: Mapping[OrphanKind, Mapping[str, Orphan]] = {
            kind: table.values for kind, table in self._orphans.items()
        }
        self._unconfirmed = Counter(
            orphan.sandbox
            for orphans in self.orphans.values()
            for orphan in orphans.values()
            if not orphan.confirmed
        )
        self.unconfirmed: Mapping[str, int] = MappingProxyType(self._unconfirmed)

    @property
    def unreadable(self) -> dict[str, str]:
        """Rows that this release cannot read, such as ``record alice``, and why.

        They stay in the database unchanged until a value is put under the same key.
        """
        return {
            f"{kind} {key}": why
            for kind, table in self._tables.items()
            for key, why in table.unreadable.items()
        }

    @property
    def desired_known(self) -> bool:
        """Whether this database ever accepted a desired file."""
        return _DESIRED_KNOWN in self._facts.values

    def accept(self, records: Mapping[str, Record], removed: Iterable[str]) -> Changes:
        """Accept the desired file, as one step that becomes durable whole or not at all.

        A record in neither argument stays as last accepted. An existing record keeps its
        ``created_at``. A record that is declared again loses its tombstone.

        Args:
            records: Declared records by name, whether new, changed or neither.
            removed: Names that are no longer declared. Unknown names are ignored.
        """
        self._facts.put(_DESIRED_KNOWN, "yes")
        known = {*self.records, *self.held}
        changes = Changes(
            added=frozenset(name for name in records if name not in self.records),
            changed=frozenset(
                name
                for name, record in records.items()
                if name in self.records and self.records[name] != self._aged(record)
            ),
            removed=frozenset(name for name in removed if name in known and name not in records),
        )
        for name in changes.added | changes.changed:
            self.put_record(records[name])
        for name in changes.removed:
            self.remove_record(name)
        return changes

    def put_record(self, record: Record) -> None:
        """Add or change one record, and drop its tombstone."""
        self._records.put(record.name, self._aged(record))
        self._tombstones.drop(record.name)

    def remove_record(self, name: str) -> None:
        """Replace one record by a tombstone; an unknown name is no error."""
        if name not in self.records and name not in self.held:
            return
        record = self.records.get(name)
        retain = record.retain if record else tables.DEFAULT_RETAIN
        self._records.drop(name)
        self._tombstones.put(name, Tombstone(name, retain))

    def forget(self, name: str) -> None:
        """End a deletion: drop tombstone, leases and memory. A declared record is not changed.

        The session key and the claim stay until ``drop_key``, in case that the record is declared
        again while its volume still exists.
        """
        if name in self.records or name in self.held:
            return
        self._tombstones.drop(name)
        self._memories.drop(name)
        if not self.claim(name).volumes:
            self.drop_claim(name)
        identity = self.identity(name)
        if identity is not None:
            self.put_identity(name, Identity(identity.session_key))

    def drop_key(self, name: str) -> None:
        """Drop key and claim of a sandbox without record and volume."""
        if name in self.records or name in self.held:
            return
        self.drop_claim(name)
        self._release(name)
        self._identities.drop(name)

    def identity(self, name: str) -> Identity | None:
        """Return key and host ports of a sandbox; after ``forget`` there is only the key."""
        return self._identities.values.get(name)

    def put_identity(self, name: str, identity: Identity) -> None:
        """Set the key and all leases of a sandbox.

        Raises:
            ValueError: a host port is named twice, or is leased to another sandbox.
        """
        ports = sorted(identity.ports.values())
        taken = [port for port in ports if self._leased.get(port, name) != name]
        if taken or len(set(ports)) < len(ports):
            raise ValueError(f"{name}: host ports are not free: {taken or ports}")
        self._release(name)
        self._leased.update(dict.fromkeys(ports, name))
        frozen = MappingProxyType(dict(identity.ports))
        self._identities.put(name, Identity(identity.session_key, frozen))

    def memory(self, name: str) -> SandboxMemory:
        """Return the restart memory of a sandbox; an empty one where there is none."""
        return self._memories.values.get(name, _NO_MEMORY)

    def put_memory(self, name: str, memory: SandboxMemory) -> None:
        """Set the restart memory of a sandbox. An equal one costs nothing."""
        self._memories.put(name, memory)

    def note_orphan(
        self,
        kind: OrphanKind,
        key: str,
        sandbox: str,
        since: float,
        retain: float | None,
        *,
        confirmed: bool = False,
        lost: bool = False,
    ) -> Orphan:
        """Add and return an orphan. A known one keeps its ``since`` and its confirmation."""
        known = self.orphans[kind].get(key)
        if known is not None:
            since, confirmed = known.since, known.confirmed or confirmed
        orphan = Orphan(sandbox, since, retain, confirmed, lost)
        self._put_orphan(kind, key, orphan)
        return orphan

    def drop_orphan(self, kind: OrphanKind, key: str) -> None:
        """Remove an orphan: the object is gone, or a record wants it again. None is no error."""
        self._put_orphan(kind, key, None)

    def confirm_orphans(self) -> None:
        """Confirm, for a person, the removal of all present orphans."""
        for kind, orphans in self.orphans.items():
            for key, orphan in list(orphans.items()):
                self._put_orphan(kind, key, replace(orphan, confirmed=True))

    def _put_orphan(self, kind: OrphanKind, key: str, orphan: Orphan | None) -> None:
        known = self.orphans[kind].get(key)
        if known is not None and not known.confirmed:
            self._unconfirmed[known.sandbox] -= 1
            if not self._unconfirmed[known.sandbox]:
                del self._unconfirmed[known.sandbox]
        if orphan is not None and not orphan.confirmed:
            self._unconfirmed[orphan.sandbox] += 1
        if orphan is None:
            self._orphans[kind].drop(key)
        else:
            self._orphans[kind].put(key, orphan)

    @property
    def owner(self) -> str:
        """The random id of this database, in a label of every object that is created for it."""
        known = self.fact(_OWNER)
        if known is None:
            known = secrets.token_hex(_OWNER_BYTES)
            self.put_fact(_OWNER, known)
        return known

    def claim(self, sandbox: str) -> Claim:
        """Return the objects that were created for a sandbox; none: an empty claim."""
        return self.claims.get(sandbox, _NO_CLAIM)

    def put_claim(self, sandbox: str, claim: Claim) -> None:
        """Set the objects that were created for a sandbox. An equal claim costs nothing."""
        self._unlist_volumes(sandbox)
        self._claimed_volumes.update(dict.fromkeys(claim.volumes, sandbox))
        self._claims.put(sandbox, claim)

    def drop_claim(self, sandbox: str) -> None:
        """Remove a claim: no object of the sandbox is left. None is no error."""
        self._unlist_volumes(sandbox)
        self._claims.drop(sandbox)

    def _unlist_volumes(self, sandbox: str) -> None:
        for volume in self.claim(sandbox).volumes:
            self._claimed_volumes.pop(volume, None)

    def put_image(self, image_id: str, image: PulledImage) -> None:
        """Add an image that this instance pulled. An equal one costs nothing."""
        self._images.put(image_id, image)

    def drop_image(self, image_id: str) -> None:
        """Remove an image that is gone from the host. None is no error."""
        self._images.drop(image_id)

    def fact(self, name: str) -> str | None:
        """Return a text that was put under a name; None: there is none."""
        return self._facts.values.get(name)

    def put_fact(self, name: str, value: str | None) -> None:
        """Put a text under a name; None removes it."""
        if value is None:
            self._facts.drop(name)
        else:
            self._facts.put(name, value)

    def save_time(self, *, always: bool = False) -> None:
        """Save the observed time if a kill would lose too much of it, or ``always``."""
        waits = any(self.orphans.values())
        most = _SAVE_EVERY if waits else _SAVE_IDLE_EVERY
        if always or self.clock() - self._saved >= most:
            self._saved = self.clock()
            self._facts.put(_OBSERVED, repr(self._saved))

    def append(
        self, event: str, sandbox: str | None, cause: str, data: Mapping[str, Any]
    ) -> LedgerEntry:
        """Add to the ledger. Long texts are clipped; ``data`` must hold no secret."""
        entry = self._ledger.append(event, sandbox, cause, data)
        self._touched()
        return entry

    def _aged(self, record: Record) -> Record:
        known = self.records.get(record.name)
        return replace(record, created_at=known.created_at) if known else record

    def _release(self, name: str) -> None:
        identity = self.identity(name)
        for port in identity.ports.values() if identity else ():
            del self._leased[port]


def _seconds_in(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise StoreError(
            f"the database's observed time is {text!r}, not a number of seconds: restore the"
            " database from a backup, or move it away and start again"
        )
    return seconds
