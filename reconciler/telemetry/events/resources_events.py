"""Events of workspaces, orphans, images and disks."""

from typing import Literal

from reconciler.telemetry.events.base import Event, RepeatedEvent, SandboxEvent, log_event

GarbageKind = Literal["container", "volume"]


@log_event("volume.created")
class VolumeCreated(SandboxEvent):
    """A workspace was created."""

    volume: str


@log_event("volume.removed")
class VolumeRemoved(SandboxEvent):
    """A workspace and its content were removed."""

    volume: str


@log_event("volume.lost", "error")
class VolumeLost(SandboxEvent):
    """Someone else removed a workspace that a record wants; its content is lost."""

    volume: str


@log_event("volume.orphaned")
class VolumeOrphaned(SandboxEvent):
    """No record wants this workspace now. It is removed at `kept_until`, or kept forever."""

    volume: str
    kept_until: str | None = None


@log_event("volume.claimed")
class VolumeClaimed(SandboxEvent):
    """A record uses its orphaned workspace again."""

    volume: str


@log_event("garbage.found")
class GarbageFound(SandboxEvent):
    """Orphan found: it carries our label but no record wants it. Removed after gc_grace."""

    kind: GarbageKind
    name: str
    remove_in: float


@log_event("garbage.removed")
class GarbageRemoved(SandboxEvent):
    """An orphan was removed."""

    kind: GarbageKind
    name: str


@log_event("garbage.failed", "warning")
class GarbageFailed(SandboxEvent, RepeatedEvent):
    """An orphan could not be removed; the removal is retried."""

    kind: GarbageKind
    name: str
    error: str
    retry_in: float


@log_event("gc.held", "error")
class GcHeld(Event):
    """The mass-delete guard holds back a collection of orphans until it is confirmed."""

    deletions: int
    of: int
    names: list[str]
    hint: str


@log_event("gc.released")
class GcReleased(Event):
    """The held collection was confirmed, or its orphans have records again."""

    deletions: int


@log_event("pull.started")
class PullStarted(Event):
    """An image is being pulled for these sandboxes."""

    image: str
    sandboxes: list[str]


@log_event("pull.progress")
class PullProgress(Event):
    """Progress of an image pull."""

    image: str
    layers: str
    bytes_done: int
    bytes_total: int


@log_event("pull.done")
class PullDone(Event):
    """The image was pulled."""

    image: str
    seconds: float


@log_event("pull.cancelled")
class PullCancelled(Event):
    """The pull was cancelled: no sandbox waits for the image."""

    image: str


@log_event("pull.failed", "error")
class PullFailed(RepeatedEvent):
    """An image pull failed; it is retried, which is logged once a minute."""

    image: str
    error: str
    sandboxes: list[str]


@log_event("image.collected")
class ImageCollected(Event):
    """Disk pressure: an unused image that this instance pulled was removed."""

    image: str
    image_id: str
    bytes: int


@log_event("image.collect_failed", "warning")
class ImageCollectFailed(RepeatedEvent):
    """An unused image could not be removed; the removal is retried."""

    image: str
    error: str


@log_event("disk.pressure", "error")
class DiskPressure(Event):
    """A disk has too little free space: no new sandbox is created, existing ones keep running."""

    disk: str
    path: str
    free: int
    total: int
    reason: str


@log_event("disk.relieved")
class DiskRelieved(Event):
    """The disk has enough free space again: new sandboxes are created."""

    disk: str
    path: str
    free: int
    total: int


@log_event("disk.unmeasured", "warning")
class DiskUnmeasured(RepeatedEvent):
    """Free disk space could not be measured; the last known value is used."""

    path: str
    error: str
