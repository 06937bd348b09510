"""Actions, what prevents them, and the decisions that ask for them. Times are observed seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from reconciler.core.observed import Container, Phase

# Reasons that pass within a moment of a start or an edit. They are no faults.
UNMEASURED: Final = "the disks are not measured yet"
UNREAD: Final = "its env_file is not read yet"


class Verb(StrEnum):
    """The kinds of action that the executor can perform."""

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
        """Whether the action is part of making a container, up to its first start."""
        return self in {Verb.PULL, Verb.CREATE, Verb.CREATE_VOLUME, Verb.START}


@dataclass(frozen=True, slots=True)
class Action:
    """One idempotent step on the engine. ``cause`` is logged and shown to users.

    ``target`` is the name of a container or a volume, or an image. ``container_id`` is set for an
    action on an existing container, ``new_name`` for a rename. ``restart`` marks an action that
    begins a restart, which the backoff counts.
    """

    verb: Verb
    target: str
    cause: str
    container_id: str = ""
    new_name: str = ""
    restart: bool = False

    def __str__(self) -> str:
        arrow = f" -> {self.new_name}" if self.new_name else ""
        return f"{self.verb} {self.target}{arrow} ({self.cause})"


class Source(StrEnum):
    """What a blocker comes from."""

    RECORD = "record"
    ENV_FILE = "env_file"
    PORTS = "ports"
    INSTANCE = "instance"
    DISK = "disk"
    INSPECT = "inspect"
    ENGINE = "engine"
    CIRCUIT = "circuit"
    IMAGE = "image"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why an action must not be done now.

    ``verb`` is the action; ``create`` includes everything before it, such as the pull. None: no
    decision waits for it, it is only reported. ``until`` None: until the source is fixed.
    """

    verb: Verb | None
    until: float | None
    reason: str
    source: Source

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong; otherwise the reason passes within a moment."""
        return self.reason not in {UNMEASURED, UNREAD}


@dataclass(frozen=True, slots=True)
class Decision:
    """The next action, or why there is none. ``wait_until`` None: until something changes."""

    action: Action | None = None
    wait_until: float | None = None
    waiting_for: str = ""


NOTHING: Final = Decision()


def wait_for(blocker: Blocker) -> Decision:
    """Return the decision to wait until the blocker is gone."""
    return Decision(wait_until=blocker.until, waiting_for=blocker.reason)


def step_on(
    verb: Verb,
    container: Container,
    cause: str,
    *,
    new_name: str = "",
    restart: bool = False,
) -> Decision:
    """Return the decision for an action on an existing container."""
    return Decision(
        Action(verb, container.name, cause, container.id, new_name=new_name, restart=restart),
    )


def wind_down(container: Container, cause: str) -> Decision:
    """Return the next step to end a container's processes."""
    # Not every engine can stop a paused container gracefully.
    verb = Verb.UNPAUSE if container.phase is Phase.PAUSED else Verb.STOP
    return step_on(verb, container, cause)


def earliest(waits: list[Decision]) -> Decision:
    """Return the wait that ends first, or ``NOTHING`` if no wait has an end."""
    timed = [(wait.wait_until, wait.waiting_for) for wait in waits if wait.wait_until is not None]
    return Decision(None, *min(timed)) if timed else NOTHING
