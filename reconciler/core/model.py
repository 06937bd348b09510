"""The nouns of the loop: what is desired, what is observed, what is remembered, what is done.

All are frozen values. Durations are in seconds. Times are in observed seconds: those that the
daemon has run on its database, which no clock's jump changes. The dates that the engine gives
(``created_at``, ``started_at``, ``finished_at``) are seconds since the epoch by the engine's clock:
they are shown, and compared with each other for equality, and never compared with a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.core.spec import DesiredState, SandboxSpec


# What is waited for a moment after the start, or after an edit; it is no fault.
UNMEASURED: Final = "the disks are not measured yet"
UNREAD: Final = "its env_file is not read yet"
AWAITED: Final = frozenset({UNMEASURED, UNREAD})


class Phase(StrEnum):
    """What the engine says of a container, in the engine's own words."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


class CheckState(StrEnum):
    """What the engine says of a running container's HEALTHCHECK."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Check:
    """The HEALTHCHECK of a container's image, which the engine runs.

    ``result`` identifies the last result: it differs from that of any other; empty before the
    first.
    """

    state: CheckState
    result: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What of a container can be changed while it exists. 0 and "" are no limit.

    ``nano_cpus`` are billionths of a core, ``cpu_quota`` is in microseconds a period. Memory is in
    bytes; ``memory_swap`` counts memory and swap together, and is -1 where swap has no limit.
    """

    restart_policy: str = "no"
    nano_cpus: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    cpuset: str = ""
    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    pids: int = 0

    def changed_to(self, other: Limits) -> dict[str, tuple[int | str, int | str]]:
        """The fields that differ, each with its value here and there."""
        pairs = {
            each.name: (getattr(self, each.name), getattr(other, each.name))
            for each in fields(self)
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True, slots=True)
class Baseline:
    """The limits that a container is to have, as its engine words them, and a reported drift."""

    container_id: str
    limits: Limits
    reported: Limits | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """One container with our instance label, as the engine described it in one answer.

    ``started_at`` is None for one that was never started. ``ports`` maps container ports to the
    host ports that it was made with, whatever its phase. ``volumes`` names its named volumes.
    ``check`` is None where its image has no HEALTHCHECK, or where it is switched off.
    ``owner``, ``nonce`` and ``base`` (the sandbox's container name) are what its labels say.
    ``engine_restarts`` counts what the engine did by a restart policy since somebody started it.
    """

    id: str
    name: str
    sandbox: str
    spec: str
    spec_hash: str
    phase: Phase
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    ports: Mapping[int, int] = field(default_factory=dict)
    volumes: frozenset[str] = frozenset()
    image: str = ""
    image_id: str = ""
    stop_timeout: float = 10.0
    check: Check | None = None
    session_key: str | None = field(default=None, repr=False)
    owner: str = ""
    nonce: str = ""
    base: str = ""
    engine_restarts: int = 0
    limits: Limits = Limits()

    @property
    def live(self) -> bool:
        """It has processes: running, paused or about to."""
        return self.phase in {Phase.RUNNING, Phase.PAUSED, Phase.RESTARTING}


@dataclass(frozen=True, slots=True)
class Volume:
    """One named volume. ``retain`` and what follows are what its labels say, or empty.

    ``adopted`` marks one that we own without having made it: it is never removed.
    """

    name: str
    sandbox: str
    retain: str = ""
    instance: str = ""
    owner: str = ""
    nonce: str = ""
    base: str = ""
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """The engine's objects that were made, or taken over, for one sandbox of an instance.

    ``pending`` maps each name under which a create was asked for to the nonce that the object
    bears, until the object was seen. ``used`` maps the latest nonces that were seen to the names
    that they were for: a create that was given up can still be carried out, a second time.
    ``containers`` holds ids, the newest last. ``adopted`` holds the ids and volume names that a
    person had taken over, whatever their labels say.
    """

    instance: str = ""
    pending: Mapping[str, str] = field(default_factory=dict)
    used: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    adopted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """All that the engine has under one key."""

    containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()

    def container(self, container_id: str) -> Container | None:
        """The container with this id."""
        return next((c for c in self.containers if c.id == container_id), None)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a sandbox keeps over restarts and recreations: its key and its host ports.

    ``ports`` maps container ports to leased host ports.
    """

    session_key: str = field(repr=False)
    ports: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Desired:
    """One record, ready to be compared with what is there.

    ``spec_hash`` is None while it cannot be known (``problem`` says why, for instance an env file
    that cannot be read); then nothing is made or replaced. ``identity`` is None until it is leased.
    ``changes`` says what has changed since a former ``spec_hash``, as far as this process saw it.
    """

    name: str
    state: DesiredState
    spec_name: str
    spec: SandboxSpec
    spec_hash: str | None
    identity: Identity | None
    problem: str | None = None
    changes: Mapping[str, str] = field(default_factory=dict)

    def change_since(self, spec_hash: str) -> str:
        """Return what has changed since a container was made with that hash."""
        unknown = "its spec or its env_file changed" if self.spec.env_file else "the spec changed"
        return self.changes.get(spec_hash, unknown)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a container: its id and the start date that the engine gives, if any.

    ``seen_at`` is when the daemon first saw it. ``engine_restarts`` is as in ``Container``.
    """

    container_id: str
    started_at: float | None
    seen_at: float
    engine_restarts: int = 0

    def is_of(self, container: Container) -> bool:
        """Whether the container is in this run, or ended it."""
        return (self.container_id, self.started_at) == (container.id, container.started_at)


@dataclass(frozen=True, slots=True)
class End:
    """The end of one run, as the engine describes it: equal for the same end, else different.

    The engine overwrites the exit code when a later start fails (with 128, measured on 20.10), so
    it only counts where there is no end date.
    """

    container_id: str
    started_at: float | None
    finished_at: float | None
    exit_code: int | None

    @classmethod
    def of(cls, container: Container) -> End:
        """The end of the run that the container was in last."""
        code = container.exit_code if container.finished_at is None else None
        return cls(container.id, container.started_at, container.finished_at, code)


@dataclass(frozen=True, slots=True)
class Death:
    """An end that nobody asked for. ``log_tail`` holds the last log lines, secrets struck out.

    ``seen_at`` is when the daemon first saw it, ``finished_at`` the engine's date. ``unseen`` says
    that it ended while the engine or the daemon was down, in a way that fits an engine that ended:
    that is no crash.
    """

    container_id: str
    seen_at: float
    exit_code: int
    oom_killed: bool
    finished_at: float | None = None
    unseen: bool = False
    error: str = ""
    log_tail: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """For a person: ``exit code 137, out of memory``."""
        if self.unseen and self.exit_code == UNKNOWN_EXIT:
            return "its end was not seen: the engine or the host went down"
        parts = [f"exit code {self.exit_code}"]
        if self.oom_killed:
            parts.append("out of memory")
        elif _SIGNAL_BASE < self.exit_code <= _SIGNAL_BASE + _LAST_SIGNAL:
            parts.append(f"signal {self.exit_code - _SIGNAL_BASE}")
        if self.error:
            parts.append(self.error)
        if self.unseen:
            parts.append("while the engine or the daemon was down")
        return ", ".join(parts)


_SIGNAL_BASE = 128
_LAST_SIGNAL = 64
# What Docker says of a container that ended while the engine itself was down.
UNKNOWN_EXIT = 255


class FailureKey(NamedTuple):
    """What a failure is about: the step, the edit, and what exists that it was on, if anything."""

    verb: Verb
    spec_hash: str
    target: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that could not be done, how often in a row, and when it is due again.

    ``spec_hash`` is the edit that it belongs to: a newer edit is tried at once. ``target`` is the
    container's id or the volume's name where the step was on one that exists, and empty for a
    step of making, which the next try may do with another container. ``wrecked`` is the id of a
    container that cannot start any more, while another one could. ``progress``: the engine is at
    it, and only slow, so that there is something to wait for and nothing to report.
    """

    verb: Verb
    spec_hash: str
    cause: str
    count: int
    at: float
    not_before: float
    target: str = ""
    wrecked: str = ""
    progress: bool = False

    @property
    def about(self) -> FailureKey:
        """What it is remembered under."""
        return FailureKey(self.verb, self.spec_hash, self.target)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a sandbox, as it was reported; ``source`` is that of core/faults.py.

    ``logged``: it is in the log, and not in the ledger alone.
    """

    source: str
    error: str
    logged: bool = True


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of a container, first seen at ``since``. ``ours``: it was asked for or is wanted."""

    container_id: str
    ours: bool
    since: float


@dataclass(frozen=True, slots=True)
class Loss:
    """A workspace that vanished while its record wanted it, as the record was then."""

    volume: str
    spec_hash: str | None


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a sandbox between passes, and over a daemon's restarts.

    ``restarts`` counts them all; ``streak`` counts those since the last stable time and sets the
    backoff. ``run`` is the run that was seen last. ``ended`` is the end that was last taken into
    account, our own stops among them, until the container runs again; ``not_before`` is when the
    start after it is due, or None where we asked for that end. ``failures`` is empty once the
    sandbox is as desired. ``faults`` are those that were reported and are not over. ``starting`` is
    the container that we asked the engine to start, until that run is seen. ``workspace`` is the
    volume that was seen last, and ``loss`` one that vanished, until the spec is edited.
    """

    restarts: int = 0
    streak: int = 0
    run: Run | None = None
    ended: End | None = None
    not_before: float | None = None
    death: Death | None = None
    failures: tuple[Failure, ...] = ()
    starting: str = ""
    pause: Pause | None = None
    workspace: str = ""
    loss: Loss | None = None
    baseline: Baseline | None = None
    faults: tuple[Fault, ...] = ()

    @property
    def failure(self) -> Failure | None:
        """The latest failure that is one: not a step that only takes long."""
        faults = (failure for failure in self.failures if not failure.progress)
        return max(faults, key=lambda failure: failure.at, default=None)


class ImageState(StrEnum):
    """What is known of a spec's image. UNKNOWN is taken for present: the create will tell."""

    UNKNOWN = "unknown"
    ABSENT = "absent"
    PULLING = "pulling"
    FRESH = "fresh"


class Verdict(StrEnum):
    """What the probes say of the container that runs now."""

    UNKNOWN = "unknown"
    GOOD = "good"
    BAD = "bad"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Health:
    """The folded probe results of one run of a container.

    A run is a container's id and the date it started. ``seen_at`` is when the daemon first saw the
    run; ``since`` is when the verdict was reached; ``good`` and ``bad`` count the last results of a
    kind in a row; ``reason`` is the last bad's. ``unknown`` says why the sandbox cannot be asked
    now; empty where it can be.
    """

    container_id: str = ""
    started_at: float | None = None
    seen_at: float = 0.0
    verdict: Verdict = Verdict.UNKNOWN
    since: float = 0.0
    good: int = 0
    bad: int = 0
    reason: str = ""
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Orphans:
    """Since when what belongs to no record has belonged to none.

    ``containers`` maps ids, ``volumes`` maps names, to observed seconds. ``retain`` maps volume
    names to seconds, or None: kept indefinitely. ``held`` names those (ids and volume names) whose
    removal the mass-delete guard holds back until it is confirmed.
    """

    containers: Mapping[str, float] = field(default_factory=dict)
    volumes: Mapping[str, float] = field(default_factory=dict)
    retain: Mapping[str, float | None] = field(default_factory=dict)
    held: frozenset[str] = frozenset()


class Fate(StrEnum):
    """Why a key has no record: it was taken out, or nobody knows it."""

    DELETED = "deleted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a decision about one key is made from. ``desired`` None: should not exist.

    ``hung`` maps the steps at which the engine hangs, for everybody, to when one is tried next.
    ``hold`` says why nothing new may be made now, such as a disk that is full; what exists stays.
    ``held`` says why the desired file's record cannot be used, ``unseen`` why what is under the key
    could not be inspected, ``blind`` why the engine cannot be asked at all; each is empty where all
    is well.
    ``sees_volumes`` is False where the engine forbids to list volumes: one that is not observed may
    exist then.
    """

    key: str
    prefix: str
    desired: Desired | None
    observed: Observed
    now: float
    memory: Memory = Memory()
    health: Health = Health()
    image: ImageState = ImageState.UNKNOWN
    fate: Fate = Fate.UNKNOWN
    orphans: Orphans = Orphans()
    gc_grace: float = 300.0
    pause_grace: float = 0.0
    may_collect: bool = True
    hung: Mapping[Verb, float] = field(default_factory=dict)
    hold: str = ""
    held: str = ""
    unseen: str = ""
    blind: str = ""
    sees_volumes: bool = True

    @property
    def hindrance(self) -> str:
        """Why nothing may be made for the record; empty where it may."""
        problem = self.desired.problem if self.desired else None
        return self.unseen or problem or self.hold


class Verb(StrEnum):
    """The forward steps that the executor knows."""

    PULL = "pull"
    CREATE_VOLUME = "create-volume"
    CREATE = "create"
    START = "start"
    STOP = "stop"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    UPDATE = "update"
    RENAME = "rename"
    REMOVE = "remove"
    REMOVE_VOLUME = "remove-volume"

    @property
    def makes(self) -> bool:
        """Whether a container that is to be made needs the step."""
        return self in {Verb.PULL, Verb.CREATE, Verb.CREATE_VOLUME, Verb.START}


@dataclass(frozen=True, slots=True)
class Action:
    """One idempotent forward step on the engine, with the cause that a person is told.

    ``target`` is a container's name, a volume's name, or an image. ``container_id`` is set where
    the step is on a container that exists. ``new_name`` is for a rename. ``restart`` marks a step
    that begins a restart, which the backoff counts.
    """

    verb: Verb
    target: str
    cause: str
    container_id: str = ""
    new_name: str = ""
    restart: bool = False

    def __str__(self) -> str:
        moved = f" -> {self.new_name}" if self.new_name else ""
        return f"{self.verb} {self.target}{moved} ({self.cause})"


@dataclass(frozen=True, slots=True)
class Decision:
    """The next step, or why there is none. ``wait_until`` None: until something happens."""

    action: Action | None = None
    wait_until: float | None = None
    waiting_for: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The ordered actions that take a key to what is desired, as far as can be foreseen."""

    key: str
    actions: tuple[Action, ...] = ()
    waiting_for: str = ""


class Status(StrEnum):
    """What users see."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPED = "STOPPED"
    ERROR = "ERROR"
    MISSING = "MISSING"
    UNKNOWN = "UNKNOWN"
