"""Events of the desired file and of the records that it declares."""

from reconciler.telemetry.events.base import Event, RepeatedEvent, SandboxEvent, log_event


@log_event("manifest.loaded")
class ManifestLoaded(Event):
    """The desired file is in force."""

    path: str
    sandboxes: int


@log_event("manifest.rejected", "error")
class ManifestRejected(Event):
    """The desired file is unusable; the last good state stays in force."""

    path: str
    location: str
    error: str


@log_event("manifest.held", "error")
class ManifestHeld(Event):
    """One invalid record or spec is held back; its sandbox stays as last declared."""

    path: str
    location: str
    error: str


@log_event("manifest.brake", "error")
class ManifestBrake(Event):
    """The mass-delete guard holds back the deletions of one edit until they are confirmed."""

    path: str
    deletions: int
    of: int
    names: list[str]
    hint: str


@log_event("manifest.brake_released")
class ManifestBrakeReleased(Event):
    """The held deletions were confirmed, or taken back."""

    deletions: int
    why: str


@log_event("manifest.watch_failed", "warning")
class ManifestWatchFailed(RepeatedEvent):
    """The desired file's folder cannot be watched; the periodic rescan still finds edits."""

    path: str
    error: str


@log_event("reload.requested")
class ReloadRequested(Event):
    """A reload was requested."""

    source: str


@log_event("reload.done")
class ReloadDone(Event):
    """The requested reload succeeded."""

    source: str
    added: list[str]
    changed: list[str]
    removed: list[str]


@log_event("reload.failed", "error")
class ReloadFailed(Event):
    """The requested reload found errors, or deletions that need a confirmation."""

    source: str
    errors: list[str]
    awaiting_confirmation: list[str]


@log_event("record.added")
class RecordAdded(SandboxEvent):
    """A sandbox was declared."""

    spec: str
    desired: str


@log_event("record.changed")
class RecordChanged(SandboxEvent):
    """A record changed."""

    spec: str
    desired: str


@log_event("record.deleted")
class RecordDeleted(SandboxEvent):
    """A record was removed from the desired file; its sandbox is deleted."""
