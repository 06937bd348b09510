"""Events of the engine, and of other daemons that share it."""

from reconciler.telemetry.events.base import Event, RepeatedEvent, log_event


@log_event("engine.connected")
class EngineConnected(Event):
    """The engine responds; logged at the start and after each `engine.lost`."""

    engine: str | None = None
    version: str | None = None
    api_version: str | None = None


@log_event("engine.lost", "error")
class EngineLost(RepeatedEvent):
    """The engine does not respond; nothing is changed until it does."""

    error: str


@log_event("engine.slow", "warning")
class EngineSlow(RepeatedEvent):
    """A read from the engine timed out."""

    call: str
    seconds: float
    error: str


@log_event("engine.list_failed", "warning")
class EngineListFailed(RepeatedEvent):
    """The engine refused a list. Work continues; no orphan is removed until a list succeeds."""

    error: str


@log_event("engine.forbidden", "error")
class EngineForbidden(Event):
    """The engine, or a proxy before it, forbids a part of its API; features that need it fail."""

    part: str
    error: str


@log_event("engine.allowed")
class EngineAllowed(Event):
    """A part of the engine's API that was forbidden is allowed again."""

    part: str


@log_event("engine.warning", "warning")
class EngineWarning(Event):
    """The engine created a container and warned that a part of its configuration has no effect."""

    warning: str


@log_event("engine.unreadable", "error")
class EngineUnreadable(Event):
    """The engine's response about one object cannot be decoded; other objects are not affected."""

    object: str
    error: str


@log_event("engine.wedged", "error")
class EngineWedged(Event):
    """Engine wedged: reads work, writes hang. Restart the engine."""

    error: str
    verbs: list[str]


@log_event("engine.unwedged")
class EngineUnwedged(Event):
    """The engine is no longer wedged."""


@log_event("engine.stream_lost", "warning")
class EngineStreamLost(RepeatedEvent):
    """The event stream ended; the daemon reconnects and lists everything again."""

    error: str


@log_event("owner.conflict", "error")
class OwnerConflict(Event):
    """Another daemon uses this instance on this engine; objects that it created are left alone."""

    instance: str
    owner: str
    other: str
    hint: str


@log_event("owner.unlocked", "warning")
class OwnerUnlocked(Event):
    """The lock that keeps a second daemon off this host's engine is unavailable."""

    error: str


@log_event("owner.unmarked", "warning")
class OwnerUnmarked(RepeatedEvent):
    """The engine refuses to change marker volumes; nothing is adopted from another database."""

    error: str
