"""What the store holds, how a value becomes a row, and the schema of the database.

Times are observed seconds (``observed_clock.py``), except ``Record.created_at`` and ``ledger.at``,
which are for display: seconds since the epoch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeVar

from pydantic import TypeAdapter

from reconciler.core.disk_pressure import PulledImage
from reconciler.core.observed import Claim
from reconciler.core.restart import SandboxMemory
from reconciler.core.snapshot import Identity
from reconciler.core.spec import DesiredState, SandboxSpec, WorkspaceSpec, layer_of
from reconciler.core.units import FOREVER

if TYPE_CHECKING:
    from collections.abc import Callable

OrphanKind = Literal["container", "volume"]
V = TypeVar("V")

DEFAULT_RETAIN: Final = float(WorkspaceSpec(path="/").retain)


@dataclass(frozen=True, slots=True)
class Record:
    """One sandbox as last accepted.

    ``created_at`` is when it was first accepted, in seconds since the epoch, for display.
    """

    name: str
    spec_name: str
    state: DesiredState
    spec: SandboxSpec = field(repr=False)  # its env may hold secrets
    created_at: float

    @property
    def retain(self) -> float | None:
        """Seconds that the workspace outlives the record; None: forever.

        A record without a workspace may have had one before; that is kept for the default time.
        """
        workspace = self.spec.workspace
        retain = DEFAULT_RETAIN if workspace is None else workspace.retain
        return None if retain == FOREVER else float(retain)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deleted record whose objects are not all removed. ``retain``: seconds, None: forever."""

    name: str
    retain: float | None


@dataclass(frozen=True, slots=True)
class Orphan:
    """An object without a record, and when that was first seen, in observed seconds.

    ``retain``: seconds, None: kept forever. ``confirmed``: an accepted edit, or a person, asked for
    its removal; the mass-delete guard no longer holds it back. ``lost``: it was created for a
    database that is lost, so it is unknown whether a record wanted it.
    """

    sandbox: str
    since: float
    retain: float | None
    confirmed: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """The names of the records that an edit changed."""

    added: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class Kind(Generic[V]):
    """A kind of value in the table ``state``.

    ``decode`` takes a row's body, and the bodies of all specs by their ids for records.
    A ValueError, TypeError, AttributeError or LookupError from it makes the row unreadable.
    """

    name: str
    decode: Callable[[str, Mapping[str, str]], V]


def encode(value: object) -> str:
    """Return the body of a row: a value of any kind but a record as JSON."""
    return json.dumps(value, default=_parts_of)


class EncodedRecord(NamedTuple):
    """The body of a record's row, and the row of its spec, which all records with it share."""

    body: str
    spec_id: str
    spec: str


def encode_record(record: Record) -> EncodedRecord:
    """Return the rows of a record. Its body has the id of its spec."""
    spec = json.dumps(layer_of(record.spec), sort_keys=True)
    spec_id = hashlib.sha256(spec.encode()).hexdigest()
    return EncodedRecord(json.dumps(_parts_of(record) | {"spec": spec_id}), spec_id, spec)


def spec_id_in(body: str) -> str | None:
    """Return the id of the spec in a record's body; None if the body is unreadable."""
    try:
        spec_id = json.loads(body)["spec"]
    except (ValueError, TypeError, LookupError):
        return None
    return spec_id if isinstance(spec_id, str) else None


def _parts_of(value: Any) -> dict[str, Any]:
    if is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)


def _decode_record(body: str, specs: Mapping[str, str]) -> Record:
    known = json.loads(body)
    spec = _decode_spec(specs[known["spec"]])
    state = DesiredState(known["state"])
    return Record(known["name"], known["spec_name"], state, spec, float(known["created_at"]))


# Validation takes time, and many records have the same spec.
@lru_cache(maxsize=64)
def _decode_spec(spec: str) -> SandboxSpec:
    return SandboxSpec.model_validate(json.loads(spec))


def _decode_identity(body: str) -> Identity:
    known = json.loads(body)
    ports = {int(inside): int(host_port) for inside, host_port in known["ports"].items()}
    return Identity(known["session_key"], ports)


def _decode_claim(body: str) -> Claim:
    known = json.loads(body)
    return Claim(
        known["instance"],
        dict(known["pending"]),
        dict(known["used"]),
        tuple(known["containers"]),
        tuple(known["volumes"]),
        tuple(known["adopted"]),
    )


def _without_specs(decode: Callable[[str], V]) -> Callable[[str, Mapping[str, str]], V]:
    return lambda body, _specs: decode(body)


SPEC_KIND: Final = "spec"
RECORDS: Final = Kind("record", _decode_record)
TOMBSTONES: Final = Kind("tombstone", _without_specs(TypeAdapter(Tombstone).validate_json))
IDENTITIES: Final = Kind("identity", _without_specs(_decode_identity))
MEMORIES: Final = Kind("memory", _without_specs(TypeAdapter(SandboxMemory).validate_json))
ORPHAN_CONTAINERS: Final = Kind(
    "orphan_container", _without_specs(TypeAdapter(Orphan).validate_json)
)
ORPHAN_VOLUMES: Final = Kind("orphan_volume", _without_specs(TypeAdapter(Orphan).validate_json))
CLAIMS: Final = Kind("claim", _without_specs(_decode_claim))
FACTS: Final = Kind("fact", _without_specs(TypeAdapter(str).validate_json))
IMAGES: Final = Kind("image", _without_specs(TypeAdapter(PulledImage).validate_json))
KINDS: Final[tuple[Kind[Any], ...]] = (
    RECORDS,
    TOMBSTONES,
    IDENTITIES,
    MEMORIES,
    ORPHAN_CONTAINERS,
    ORPHAN_VOLUMES,
    CLAIMS,
    FACTS,
    IMAGES,
)

# The schema, as the steps that lead to it. A released step is never changed.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE state (
            kind TEXT NOT NULL,
            key TEXT NOT NULL,
            body TEXT NOT NULL,
            PRIMARY KEY (kind, key)
        ) WITHOUT ROWID""",
        # Kept by the triggers below, so that the database itself refuses to lease a port twice.
        """CREATE TABLE lease (
            host_port INTEGER PRIMARY KEY NOT NULL,
            sandbox TEXT NOT NULL
        )""",
        "CREATE INDEX lease_by_sandbox ON lease (sandbox)",
        """CREATE TRIGGER identity_added AFTER INSERT ON state WHEN new.kind = 'identity'
            BEGIN INSERT INTO lease (host_port, sandbox)
            SELECT value, new.key FROM json_each(new.body, '$.ports'); END""",
        """CREATE TRIGGER identity_removed AFTER DELETE ON state WHEN old.kind = 'identity'
            BEGIN DELETE FROM lease WHERE sandbox = old.key; END""",
        """CREATE TABLE ledger (
            id INTEGER PRIMARY KEY NOT NULL,
            at REAL NOT NULL,
            event TEXT NOT NULL,
            sandbox TEXT,
            cause TEXT NOT NULL,
            data TEXT NOT NULL
        )""",
        "CREATE INDEX ledger_by_sandbox ON ledger (sandbox, id)",
    ),
)
