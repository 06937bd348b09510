"""What the daemon knows, in memory: records, identities, restart memory, orphans, the ledger."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from reconciler.core.errors import StoreError
from reconciler.core.model import Claim, Identity, Memory
from reconciler.store import tables as rows
from reconciler.store.table import DirtyTable
from reconciler.store.tables import Changes, Orphan, OrphanKind, Record, Tombstone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reconciler.core.disk_pressure import PulledImage
    from reconciler.store.ledger import LedgerEntry, Pending
    from reconciler.store.observed_clock import ObservedClock
    from reconciler.store.sqlite import Rows

_DESIRED_KNOWN: Final = "desired-known"
_OBSERVED: Final = "observed-seconds"
# Observed seconds after the last write that are worth a write: while there are orphans, and while
# there are none, when an idle daemon should not wake the disk.
_SAVE_EVERY: Final = 10.0
_SAVE_IDLE_EVERY: Final = 60.0
_OWNER: Final = "owner"
_OWNER_BYTES: Final = 8
_NO_MEMORY: Final = Memory()
_NO_CLAIM: Final = Claim()


class State:
    """Reads and changes, for one thread. They take no time and never fail for the disk.

    Args:
        content: What was loaded, by table name.
        ledger: Where entries wait until they are durable.
        touched: Called after every change.
        make_clock: Gives the clock that continues from the observed seconds that were saved last.

    Attributes:
        clock: Observed seconds; all times here are by this clock.
        records: Those that should exist, by name.
        deleted: Those that were taken out and are not yet gone, by name.
        held: Names whose record this release cannot read, and why. Their sandboxes are wanted,
            nobody knows how: they are to be left alone, and never collected.
        leased: Sandbox names by host port.
        orphans: Objects without a record, by kind, then by container id or volume name.
        unconfirmed: The sandboxes that have orphans whose removal nobody confirmed, each with how
            many.
        identities: The session keys and leases, by sandbox.
        claims: The engine's objects that were made for a sandbox, by the sandbox's name.
        claimed_volumes: Sandbox names by the names of their volumes.
        images: Those that this instance brought to the host, by id.
    """

    def __init__(
        self,
        content: Mapping[str, Rows],
        ledger: Pending,
        touched: Callable[[], None],
        make_clock: Callable[[float], ObservedClock],
    ) -> None:
        self._ledger, self._touched = ledger, touched
        self._shelves: dict[str, DirtyTable[Any]] = {
            table.name: DirtyTable(table, content[table.name], touched) for table in rows.TABLES
        }
        self._records: DirtyTable[Record] = self._shelves[rows.RECORDS.name]
        self._tombstones: DirtyTable[Tombstone] = self._shelves[rows.TOMBSTONES.name]
        self._identities: DirtyTable[Identity] = self._shelves[rows.IDENTITIES.name]
        self._memories: DirtyTable[Memory] = self._shelves[rows.MEMORIES.name]
        self._claims: DirtyTable[Claim] = self._shelves[rows.CLAIMS.name]
        self._facts: DirtyTable[str] = self._shelves[rows.FACTS.name]
        self._images: DirtyTable[PulledImage] = self._shelves[rows.IMAGES.name]
        self._orphans: dict[OrphanKind, DirtyTable[Orphan]] = {
            "container": self._shelves[rows.ORPHAN_CONTAINERS.name],
            "volume": self._shelves[rows.ORPHAN_VOLUMES.name],
        }
        self._saved = _seconds(self._facts.values.get(_OBSERVED, "0"))
        self.clock = make_clock(self._saved)
        self._leased = _ports_by_owner(self._identities.values)
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
            kind: shelf.values for kind, shelf in self._orphans.items()
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

        They stay in the database as they are until something is put under the same key.
        """
        return {
            f"{table} {key}": why
            for table, shelf in self._shelves.items()
            for key, why in shelf.unreadable.items()
        }

    @property
    def desired_known(self) -> bool:
        """Whether a desired file was ever accepted in this database's life."""
        return _DESIRED_KNOWN in self._facts.values

    def accept(self, records: Mapping[str, Record], removed: Iterable[str]) -> Changes:
        """Takes in what the desired file declares, as one step that is durable whole or not at all.

        A declared record in neither argument stays as last accepted, and so does ``created_at`` of
        one that exists. A record that comes back loses its tombstone.

        Args:
            records: Declared records by name, whether new, changed or neither.
            removed: Names that are declared no more. Unknown ones do no harm.
        """
        self._facts.put(_DESIRED_KNOWN, "yes")
        known = {*self.records, *self.held}
        changes = Changes(
            added=frozenset(name for name in records if name not in self.records),
            changed=frozenset(name for name, record in records.items() if self._is_changed(record)),
            removed=frozenset(name for name in removed if name in known and name not in records),
        )
        for name in changes.added | changes.changed:
            self.put_record(records[name])
        for name in changes.removed:
            self.remove_record(name)
        return changes

    def put_record(self, record: Record) -> None:
        """Makes or changes one record. One that comes back loses its tombstone."""
        self._records.put(record.name, self._aged(record))
        self._tombstones.drop(record.name)

    def remove_record(self, name: str) -> None:
        """Takes one record out and leaves a tombstone. Harmless where there is none."""
        if name not in self.records and name not in self.held:
            return
        record = self.records.get(name)
        retain = record.retain if record else rows.DEFAULT_RETAIN
        self._records.drop(name)
        self._tombstones.put(name, Tombstone(name, retain))

    def forget(self, name: str) -> None:
        """Ends a deletion: drops tombstone, leases and memory. A record that came back stays whole.

        The session key and the claim stay, for a record that comes back to its volume, until
        ``drop_key``.
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
        """Drops key and claim of a sandbox that is gone with its volume. A record's stay."""
        if name in self.records or name in self.held:
            return
        self.drop_claim(name)
        self._release(name)
        self._identities.drop(name)

    def identity(self, name: str) -> Identity | None:
        """The key and host ports of a sandbox; one that was forgotten has a key and no ports."""
        return self._identities.values.get(name)

    def put_identity(self, name: str, identity: Identity) -> None:
        """Sets the key and all leases of a sandbox.

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

    def memory(self, name: str) -> Memory:
        """What is remembered of a sandbox; a blank one where nothing is."""
        return self._memories.values.get(name, _NO_MEMORY)

    def put_memory(self, name: str, memory: Memory) -> None:
        """Remembers. An equal memory costs nothing."""
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
        """Notes an orphan and returns it. A known one keeps its ``since`` and its confirmation."""
        known = self.orphans[kind].get(key)
        if known is not None:
            since, confirmed = known.since, known.confirmed or confirmed
        orphan = Orphan(sandbox, since, retain, confirmed, lost)
        self._put_orphan(kind, key, orphan)
        return orphan

    def drop_orphan(self, kind: OrphanKind, key: str) -> None:
        """It is gone, or belongs to a record again. Harmless where there is none."""
        self._put_orphan(kind, key, None)

    def confirm_orphans(self) -> None:
        """Notes that a person confirmed the removal of all orphans there are now."""
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
        """The random id of this database, which labels all that is made for it."""
        known = self.fact(_OWNER)
        if known is None:
            known = secrets.token_hex(_OWNER_BYTES)
            self.put_fact(_OWNER, known)
        return known

    def claim(self, sandbox: str) -> Claim:
        """What was made for a sandbox; an empty claim where nothing was."""
        return self.claims.get(sandbox, _NO_CLAIM)

    def put_claim(self, sandbox: str, claim: Claim) -> None:
        """Notes what was made for a sandbox. An equal claim costs nothing."""
        self._unlist_volumes(sandbox)
        self._claimed_volumes.update(dict.fromkeys(claim.volumes, sandbox))
        self._claims.put(sandbox, claim)

    def drop_claim(self, sandbox: str) -> None:
        """Nothing of what was made for the sandbox is left. Harmless where there is no claim."""
        self._unlist_volumes(sandbox)
        self._claims.drop(sandbox)

    def _unlist_volumes(self, sandbox: str) -> None:
        for volume in self.claim(sandbox).volumes:
            self._claimed_volumes.pop(volume, None)

    def put_image(self, image_id: str, image: PulledImage) -> None:
        """Notes an image that this instance brought to the host. An equal note costs nothing."""
        self._images.put(image_id, image)

    def drop_image(self, image_id: str) -> None:
        """It is gone from the host. Harmless where there is none."""
        self._images.drop(image_id)

    def fact(self, name: str) -> str | None:
        """A single remembered text; None: there is none."""
        return self._facts.values.get(name)

    def put_fact(self, name: str, value: str | None) -> None:
        """Remembers a single text; None forgets it."""
        if value is None:
            self._facts.drop(name)
        else:
            self._facts.put(name, value)

    def save_time(self) -> None:
        """Make the observed time durable, where a kill would lose too much of it."""
        waits = any(self.orphans.values())
        if self.clock() - self._saved >= (_SAVE_EVERY if waits else _SAVE_IDLE_EVERY):
            self._put_time()

    def _put_time(self) -> None:
        self._saved = self.clock()
        self._facts.put(_OBSERVED, repr(self._saved))

    def append(
        self, event: str, sandbox: str | None, cause: str, data: Mapping[str, Any]
    ) -> LedgerEntry:
        """Adds to the ledger. Long texts are clipped; ``data`` must hold no secret."""
        entry = self._ledger.append(event, sandbox, cause, data)
        self._touched()
        return entry

    def _is_changed(self, record: Record) -> bool:
        known = self.records.get(record.name)
        return known is not None and known != self._aged(record)

    def _aged(self, record: Record) -> Record:
        known = self.records.get(record.name)
        return replace(record, created_at=known.created_at) if known else record

    def _release(self, name: str) -> None:
        identity = self.identity(name)
        for port in identity.ports.values() if identity else ():
            del self._leased[port]


def _seconds(text: str) -> float:
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


def _ports_by_owner(identities: Mapping[str, Identity]) -> dict[int, str]:
    return {port: name for name, it in identities.items() for port in it.ports.values()}
