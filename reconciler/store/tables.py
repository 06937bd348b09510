"""What the store holds, and how each of it becomes a row and comes back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from pydantic import TypeAdapter

from reconciler.core.disk_pressure import PulledImage
from reconciler.core.model import Claim, Identity, Memory
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
        """Seconds that the workspace outlives the record; None: for ever.

        A record without a workspace may have had one; that is kept as long as the default says.
        """
        workspace = self.spec.workspace
        retain = DEFAULT_RETAIN if workspace is None else workspace.retain
        return None if retain == FOREVER else float(retain)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A record that was taken out and is not yet gone. ``retain``: seconds, None: for ever."""

    name: str
    retain: float | None


@dataclass(frozen=True, slots=True)
class Orphan:
    """An object without a record, and when that was first seen, in observed seconds.

    ``retain``: seconds, None: kept indefinitely. ``confirmed``: an accepted edit, or a person,
    asked for its removal; the mass-delete guard no longer holds it back. ``lost``: a database that
    is lost made it, so that nobody knows whether it was wanted.
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
class Table(Generic[V]):
    """How values of one kind are kept.

    ``select`` gives the key first. ``delete`` takes the key. ``insert`` statements take what
    ``encode`` gives. ``decode`` takes a selected row; whatever it raises makes the row unreadable.
    """

    name: str
    select: str
    delete: str
    insert: tuple[str, ...]
    encode: Callable[[str, V], dict[str, Any]]
    decode: Callable[..., V]


def _encode_record(name: str, record: Record) -> dict[str, Any]:
    spec = json.dumps(layer_of(record.spec))
    return {
        "name": name,
        "spec_name": record.spec_name,
        "state": record.state.value,
        "spec": spec,
        "spec_id": hashlib.sha256(spec.encode()).hexdigest(),
        "created_at": record.created_at,
    }


def _decode_record(name: str, spec_name: str, state: str, spec: str, created_at: float) -> Record:
    return Record(name, spec_name, DesiredState(state), _decode_spec(spec), created_at)


# Records that share a spec have their rows side by side.
@lru_cache(maxsize=1)
def _decode_spec(spec: str) -> SandboxSpec:
    return SandboxSpec.model_validate(json.loads(spec))


def _encode_identity(name: str, identity: Identity) -> dict[str, Any]:
    ports = json.dumps(dict(identity.ports))
    return {"name": name, "session_key": identity.session_key, "ports": ports}


def _decode_identity(_name: str, session_key: str, ports: str) -> Identity:
    leased = {
        int(inside): int(external_changes) for inside, external_changes in json.loads(ports).items()
    }
    return Identity(session_key, leased)


def _encode_memory(name: str, memory: Memory) -> dict[str, Any]:
    return {"name": name, "body": json.dumps(asdict(memory))}


def _decode_memory(_name: str, body: str) -> Memory:
    return _MEMORY.validate_python(json.loads(body))


def _encode_tombstone(_name: str, tombstone: Tombstone) -> dict[str, Any]:
    return asdict(tombstone)


def _encode_orphan(key: str, orphan: Orphan) -> dict[str, Any]:
    return {"id": key, **asdict(orphan)}


def _decode_orphan(
    _id: str, sandbox: str, since: float, retain: float | None, confirmed: int, lost: int
) -> Orphan:
    return Orphan(sandbox, since, retain, bool(confirmed), bool(lost))


def _encode_image(key: str, image: PulledImage) -> dict[str, Any]:
    return {"id": key, **asdict(image)}


def _decode_image(_id: str, reference: str, pulled_at: float, used_at: float) -> PulledImage:
    return PulledImage(reference, pulled_at, used_at)


def _encode_fact(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "value": value}


def _decode_fact(_name: str, value: str) -> str:
    return value


def _encode_claim(sandbox: str, claim: Claim) -> dict[str, Any]:
    return {"sandbox": sandbox, "body": json.dumps(asdict(claim))}


def _decode_claim(_sandbox: str, body: str) -> Claim:
    known = json.loads(body)
    return Claim(
        known["instance"],
        dict(known["pending"]),
        dict(known["used"]),
        tuple(known["containers"]),
        tuple(known["volumes"]),
        tuple(known["adopted"]),
    )


_MEMORY: Final = TypeAdapter(Memory)

RECORDS: Final[Table[Record]] = Table(
    name="record",
    select="SELECT name, spec_name, state, spec.body, created_at"
    " FROM record LEFT JOIN spec ON spec.id = record.spec_id ORDER BY spec_id",
    delete="DELETE FROM record WHERE name = ?",
    insert=(
        (
            "INSERT INTO spec (id, body) VALUES (:spec_id, :spec)"
            " ON CONFLICT (id) DO UPDATE SET body = excluded.body"
        ),
        (
            "INSERT INTO record (name, spec_name, state, spec_id, created_at)"
            " VALUES (:name, :spec_name, :state, :spec_id, :created_at)"
        ),
    ),
    encode=_encode_record,
    decode=_decode_record,
)
TOMBSTONES: Final[Table[Tombstone]] = Table(
    name="tombstone",
    select="SELECT name, retain FROM tombstone",
    delete="DELETE FROM tombstone WHERE name = ?",
    insert=("INSERT INTO tombstone (name, retain) VALUES (:name, :retain)",),
    encode=_encode_tombstone,
    decode=Tombstone,
)
IDENTITIES: Final[Table[Identity]] = Table(
    name="identity",
    select="SELECT name, session_key, (SELECT json_group_object(container_port, host_port)"
    " FROM lease WHERE sandbox = name) FROM identity",
    delete="DELETE FROM identity WHERE name = ?",
    insert=(
        "INSERT INTO identity (name, session_key) VALUES (:name, :session_key)",
        (
            "INSERT INTO lease (host_port, sandbox, container_port)"
            " SELECT value, :name, CAST(key AS INTEGER) FROM json_each(:ports)"
        ),
    ),
    encode=_encode_identity,
    decode=_decode_identity,
)
MEMORIES: Final[Table[Memory]] = Table(
    name="memory",
    select="SELECT name, body FROM memory",
    delete="DELETE FROM memory WHERE name = ?",
    insert=("INSERT INTO memory (name, body) VALUES (:name, :body)",),
    encode=_encode_memory,
    decode=_decode_memory,
)
ORPHAN_CONTAINERS: Final[Table[Orphan]] = Table(
    name="orphan_container",
    select="SELECT id, sandbox, since, retain, confirmed, lost FROM orphan_container",
    delete="DELETE FROM orphan_container WHERE id = ?",
    insert=(
        (
            "INSERT INTO orphan_container (id, sandbox, since, retain, confirmed, lost)"
            " VALUES (:id, :sandbox, :since, :retain, :confirmed, :lost)"
        ),
    ),
    encode=_encode_orphan,
    decode=_decode_orphan,
)
ORPHAN_VOLUMES: Final[Table[Orphan]] = Table(
    name="orphan_volume",
    select="SELECT id, sandbox, since, retain, confirmed, lost FROM orphan_volume",
    delete="DELETE FROM orphan_volume WHERE id = ?",
    insert=(
        (
            "INSERT INTO orphan_volume (id, sandbox, since, retain, confirmed, lost)"
            " VALUES (:id, :sandbox, :since, :retain, :confirmed, :lost)"
        ),
    ),
    encode=_encode_orphan,
    decode=_decode_orphan,
)
CLAIMS: Final[Table[Claim]] = Table(
    name="claim",
    select="SELECT sandbox, body FROM claim",
    delete="DELETE FROM claim WHERE sandbox = ?",
    insert=("INSERT INTO claim (sandbox, body) VALUES (:sandbox, :body)",),
    encode=_encode_claim,
    decode=_decode_claim,
)
FACTS: Final[Table[str]] = Table(
    name="fact",
    select="SELECT name, value FROM fact",
    delete="DELETE FROM fact WHERE name = ?",
    insert=("INSERT INTO fact (name, value) VALUES (:name, :value)",),
    encode=_encode_fact,
    decode=_decode_fact,
)
IMAGES: Final[Table[PulledImage]] = Table(
    name="image",
    select="SELECT id, reference, pulled_at, used_at FROM image",
    delete="DELETE FROM image WHERE id = ?",
    insert=(
        (
            "INSERT INTO image (id, reference, pulled_at, used_at)"
            " VALUES (:id, :reference, :pulled_at, :used_at)"
        ),
    ),
    encode=_encode_image,
    decode=_decode_image,
)
TABLES: Final[tuple[Table[Any], ...]] = (
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
