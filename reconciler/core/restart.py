"""The restart memory of a sandbox (runs, exits, restarts, failures), and the rules for restarts.

Durations are in seconds. Times are observed seconds: the time that daemons have run on the
database, which a clock change does not affect.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from reconciler.core.action import Action, Verb
from reconciler.core.observed import ResourceLimits  # noqa: TC001 - pydantic resolves it

if TYPE_CHECKING:
    from reconciler.core.health import Health
    from reconciler.core.observed import Container
    from reconciler.core.spec import RestartSpec

_SIGNAL_BASE: Final = 128
_LAST_SIGNAL: Final = 64
# Docker's exit code for a container that ended while the engine was down.
UNKNOWN_EXIT: Final = 255
_JITTER: Final = 0.1
_MAX_EXPONENT: Final = 32
_CRASH_LOOP: Final = 5
# Exit codes when the engine ends: unknown, or stopped by it (SIGTERM, then SIGKILL).
_ENGINE_ENDS: Final = frozenset({UNKNOWN_EXIT, 0, 128 + 15, 128 + 9})


@dataclass(frozen=True, slots=True)
class Baseline:
    """The limits a container should have, in the engine's terms, and the last reported drift."""

    container_id: str
    limits: ResourceLimits
    reported: ResourceLimits | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a container, identified by the container's id and the engine's start date.

    ``seen_at`` is when the daemon first saw it. ``engine_restarts`` is as in ``Container``.
    """

    container_id: str
    started_at: float | None
    seen_at: float
    engine_restarts: int = 0

    def is_of(self, container: Container) -> bool:
        """Whether the container is in this run, or was in it last."""
        return (self.container_id, self.started_at) == (container.id, container.started_at)


@dataclass(frozen=True, slots=True)
class End:
    """The end of one run; two are equal only if they are the same end.

    The engine overwrites the exit code when a later start fails (with 128, measured on 20.10), so
    the exit code only counts if there is no end date.
    """

    container_id: str
    started_at: float | None
    finished_at: float | None
    exit_code: int | None

    @classmethod
    def of(cls, container: Container) -> End:
        """Return the end of the container's last run."""
        code = container.exit_code if container.finished_at is None else None
        return cls(container.id, container.started_at, container.finished_at, code)


@dataclass(frozen=True, slots=True)
class Death:
    """An exit that the daemon did not ask for. ``log_tail`` has the last log lines, redacted.

    ``seen_at`` is when the daemon first saw it, ``finished_at`` the engine's date. ``unseen``: it
    happened while the engine or the daemon was down, with an exit code that an ending engine
    causes. That is not a crash.
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
        """For instance ``exit code 137, out of memory``."""
        if self.unseen and self.exit_code == UNKNOWN_EXIT:
            return "its exit was not observed: the engine or the host went down"
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


class FailureKey(NamedTuple):
    """Identity of a failure: verb, spec hash, and the existing object that it was on, if any."""

    verb: Verb
    spec_hash: str
    target: str


@dataclass(frozen=True, slots=True)
class Failure:
    """An action that failed ``count`` times in a row, and is due again at ``not_before``.

    ``spec_hash`` is the edit that it belongs to; a newer edit is tried at once. ``target`` is the
    id or volume name if the action was on an existing object. It is empty for an action that makes
    a container, since the next try may make another one. ``unstartable`` is the id of a container
    that the engine can never start again. ``progress``: the engine is still working on it, so it
    is not reported.
    """

    verb: Verb
    spec_hash: str
    cause: str
    count: int
    at: float
    not_before: float
    target: str = ""
    unstartable: str = ""
    progress: bool = False

    @property
    def about(self) -> FailureKey:
        """Its identity."""
        return FailureKey(self.verb, self.spec_hash, self.target)


@dataclass(frozen=True, slots=True)
class Fault:
    """A reported fault of a sandbox; ``core/status.py`` lists the sources.

    ``logged``: it was reported in the log, and not in the ledger alone.
    """

    source: str
    error: str
    logged: bool = True


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of a container, first seen at ``since``. ``ours``: the record asked for it."""

    container_id: str
    ours: bool
    since: float


@dataclass(frozen=True, slots=True)
class Loss:
    """A workspace volume that others removed while a record with this hash wanted it."""

    volume: str
    spec_hash: str | None


@dataclass(frozen=True, slots=True)
class SandboxMemory:
    """What is remembered of a sandbox between passes, and when the daemon restarts.

    restarts: counts all of them.
    streak: counts those since the last stable run, and sets the backoff.
    run: the run that was seen last.
    ended: the last end that was accounted for, our own stops included, until it runs again.
    not_before: when the start after that end is due; None if the daemon stopped it.
    failures: empty once the sandbox is as desired.
    faults: those that were reported and are not over.
    starting: the container that the daemon asked to start, until that run is seen.
    workspace: the volume that was seen last.
    loss: a volume that vanished, until the spec is edited.
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


def backoff(base: float, cap: float, streak: int, key: str) -> float:
    """Return the seconds before try ``streak`` + 1: 0, then ``base`` doubling up to ``cap``.

    Up to 10 % is subtracted, by key and count, so that keys that failed together retry apart.
    """
    if streak == 0:
        return 0.0
    seconds = min(base * 2.0 ** min(streak - 1, _MAX_EXPONENT), cap)
    digest = hashlib.sha256(f"{key}/{streak}".encode()).digest()
    fraction = int.from_bytes(digest[:4]) / 2**32
    return seconds * (1.0 - _JITTER * fraction)


def restart_delay(restart: RestartSpec, memory: SandboxMemory, key: str) -> float:
    """Return the seconds between an exit and the next start."""
    return backoff(restart.backoff, restart.max_backoff, memory.streak, key)


def after_look(memory: SandboxMemory, container: Container, now: float) -> SandboxMemory:
    """Note that the container was seen alive; another run counts from now."""
    same = memory.ended is None and memory.run is not None and memory.run.is_of(container)
    if same:
        return memory
    run = Run(container.id, container.started_at, now, container.engine_restarts)
    return replace(memory, run=run, ended=None, starting="")


def restarts_by_others(memory: SandboxMemory, container: Container) -> int:
    """Return how often others started the container since it was last seen alive."""
    run = memory.run
    if run is None or run.container_id != container.id or run.is_of(container):
        return 0
    by_engine = max(container.engine_restarts - run.engine_restarts, 0)
    return by_engine if memory.starting == container.id else max(by_engine, 1)


def before_step(memory: SandboxMemory, action: Action, now: float) -> SandboxMemory:
    """Note the action before it is done, so that it is not attributed to others."""
    match action.verb:
        case Verb.START:
            return replace(memory, starting=action.container_id)
        case Verb.PAUSE:
            return replace(memory, pause=Pause(action.container_id, ours=True, since=now))
        case _:
            return memory


def after_start(memory: SandboxMemory) -> SandboxMemory:
    """Note a start: an end that looks like the last one is another end."""
    return replace(memory, ended=None)


def after_death(
    memory: SandboxMemory,
    container: Container,
    death: Death,
    restart: RestartSpec,
    key: str,
) -> SandboxMemory:
    """Account for a death. A run that was seen for ``reset_after`` ends the streak."""
    ran = death.seen_at - first_seen(memory, container, death.seen_at)
    settled = replace(memory, streak=0) if ran >= restart.reset_after else memory
    due = death.seen_at + restart_delay(restart, settled, key)
    return replace(settled, death=death, ended=End.of(container), not_before=due)


def first_seen(memory: SandboxMemory, container: Container, now: float) -> float:
    """Return when the daemon first saw the container's last run; ``now`` if it never did."""
    run = memory.run
    return run.seen_at if run is not None and run.is_of(container) else now


def is_end_of_engine(container: Container, *, watched: bool) -> bool:
    """Whether the exit looks like that of an engine or a host that went down.

    ``watched``: the daemon was connected to the engine when it happened.
    """
    return not watched and not container.oom_killed and container.exit_code in _ENGINE_ENDS


def after_own_stop(memory: SandboxMemory, container: Container) -> SandboxMemory:
    """Account for a stop by the daemon: it is not a death, and a start is due at once."""
    return replace(memory, ended=End.of(container), not_before=None)


def is_accounted(memory: SandboxMemory, container: Container) -> bool:
    """Whether the container's last end was already accounted for."""
    return memory.ended == End.of(container)


def is_own_stop(memory: SandboxMemory, container: Container) -> bool:
    """Whether the container ended because the daemon stopped it."""
    return is_accounted(memory, container) and memory.not_before is None


def after_restart(memory: SandboxMemory) -> SandboxMemory:
    """Count a restart."""
    return replace(memory, restarts=memory.restarts + 1, streak=memory.streak + 1)


def is_crash_loop_reported(streak: int) -> bool:
    """Whether the streak is reported: at 5 restarts in a row, and at 10, 20, 40 and so on."""
    rounds, rest = divmod(streak, _CRASH_LOOP)
    return rest == 0 and rounds.bit_count() == 1


def unhealthy_restart_due(
    health: Health,
    memory: SandboxMemory,
    restart: RestartSpec,
    key: str,
) -> float:
    """Return when an unhealthy sandbox is due to be restarted."""
    return health.since + restart_delay(restart, after_run(memory, health, restart), key)


def after_run(memory: SandboxMemory, health: Health, restart: RestartSpec) -> SandboxMemory:
    """Account for a run that became unhealthy; a stable one resets the streak."""
    ran = health.since - health.seen_at
    return replace(memory, streak=0) if ran >= restart.reset_after else memory
