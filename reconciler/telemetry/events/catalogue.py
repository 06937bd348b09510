"""The catalogue of log events: every name the daemon logs, its level, meaning and fields.

``python -m reconciler.telemetry.events`` prints docs/events.md from it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Collection

Level = Literal["debug", "info", "warning", "error"]
_Entry = tuple[str, Level, str, tuple[str, ...]]

# What is about one sandbox names it, and says why it was done. ``reconcile_id`` is there where a
# pass did it.
_CONTEXT = ("sandbox", "reconcile_id?", "cause")
_ABOUT_SANDBOX = frozenset({"record", "sandbox", "probe", "action", "port", "volume", "garbage"})


def _of(name: str, level: Level, meaning: str, *fields: str) -> _Entry:
    """Describe an event. A field whose name ends in ``?`` is not on every line."""
    context = _CONTEXT if name.partition(".")[0] in _ABOUT_SANDBOX else ()
    return name, level, meaning, (*context, *fields)


class Event(StrEnum):
    """An event's stable name; users' filters and alerts depend on it, so it never changes.

    Attributes:
        level: The level it is logged at.
        meaning: One sentence for whoever reads the log.
        required: The fields that every line has beside timestamp, level and event.
        optional: The fields that a line may have.
    """

    level: Level
    meaning: str
    required: tuple[str, ...]
    optional: tuple[str, ...]

    def __new__(cls, name: str, level: Level, meaning: str, fields: tuple[str, ...]) -> Self:
        """Makes a member that is its name."""
        event = str.__new__(cls, name)
        event._value_ = name
        event.level, event.meaning = level, meaning
        event.required = tuple(field for field in fields if not field.endswith("?"))
        event.optional = tuple(field[:-1] for field in fields if field.endswith("?"))
        return event

    def misfits(self, fields: Collection[str]) -> tuple[list[str], list[str]]:
        """Return the fields that this event does not have, and those that it lacks."""
        unknown = sorted(set(fields) - {*self.required, *self.optional})
        return unknown, [field for field in self.required if field not in fields]

    DAEMON_STARTED = _of(
        "daemon.started", "info", "The daemon began.", "version", "instance", "pid"
    )
    DAEMON_READY = _of(
        "daemon.ready", "info", "The first full observation is done.", "seconds", "records"
    )
    DAEMON_WAITING = _of(
        "daemon.waiting", "warning", "Ready without the engine; work begins when it answers."
    )
    DAEMON_STOPPING = _of(
        "daemon.stopping", "info", "Shutdown began; the sandboxes keep running.", "signal"
    )
    DAEMON_STOPPED = _of("daemon.stopped", "info", "Shutdown is finished.")
    DAEMON_FAILED = _of(
        "daemon.failed", "error", "The daemon cannot continue and ends.", "error", "traceback?"
    )
    DAEMON_STALLED = _of(
        "daemon.stalled",
        "error",
        "Tasks hang: until they move on, the service manager's watchdog is not fed.",
        *("tasks", "repeated?"),
    )
    DAEMON_OUT_OF_FILES = _of(
        "daemon.out_of_files",
        "error",
        "No more files or connections can be opened; what needs one waits.",
        *("error", "repeated?"),
    )
    LOG_MALFORMED = _of(
        "log.malformed",
        "error",
        "A defect of this program: an event lacks fields, or has some that it should not have.",
        *("event_name", "unknown", "missing", "repeated?"),
    )
    TASK_FAILED = _of(
        "task.failed",
        "error",
        "A background task failed, which is a defect of this program; it is started again.",
        *("task", "error", "retry_in?", "traceback?", "repeated?"),
    )

    ENGINE_CONNECTED = _of(
        "engine.connected",
        "info",
        "The engine answers; logged at the start and after each `engine.lost`.",
        *("engine?", "version?", "api_version?"),
    )
    ENGINE_LOST = _of(
        "engine.lost",
        "error",
        "The engine cannot be asked; nothing is changed until it answers.",
        *("error", "repeated?"),
    )
    ENGINE_SLOW = _of(
        "engine.slow",
        "warning",
        "The engine did not answer a question in time.",
        "call",
        "seconds",
        "error",
        "repeated?",
    )
    ENGINE_LIST_FAILED = _of(
        "engine.list_failed",
        "warning",
        "The engine refused a list; work continues, and nothing is collected until one succeeds.",
        *("error", "repeated?"),
    )
    ENGINE_FORBIDDEN = _of(
        "engine.forbidden",
        "error",
        "The engine, or a proxy before it, forbids a part of its API; what needs it does not work.",
        *("part", "error"),
    )
    ENGINE_ALLOWED = _of(
        "engine.allowed", "info", "A part of the API that was forbidden is not any more.", "part"
    )
    ENGINE_WARNING = _of(
        "engine.warning",
        "warning",
        "The engine made a container, and warns that something about it will not work.",
        "warning",
    )
    ENGINE_UNREADABLE = _of(
        "engine.unreadable",
        "error",
        "The engine's answer about one object cannot be understood; the others are kept in order.",
        *("object", "error"),
    )
    ENGINE_WEDGED = _of(
        "engine.wedged",
        "error",
        "The engine answers questions, and changes hang: it has to be restarted.",
        *("error", "verbs"),
    )
    ENGINE_UNWEDGED = _of("engine.unwedged", "info", "The engine does what it hung at before.")
    ENGINE_STREAM_LOST = _of(
        "engine.stream_lost",
        "warning",
        "The event stream ended; it is opened again and a relist follows.",
        "error",
        "repeated?",
    )

    OWNER_CONFLICT = _of(
        "owner.conflict",
        "error",
        "Another daemon uses this instance on this engine; what it made is left alone.",
        *("instance", "owner", "other", "hint"),
    )
    OWNER_UNLOCKED = _of(
        "owner.unlocked",
        "warning",
        "This host's lock against a second daemon is unavailable.",
        "error",
    )
    OWNER_UNMARKED = _of(
        "owner.unmarked",
        "warning",
        "The engine refuses to make or remove a daemon's marker volume, so objects of another"
        " database are not taken over.",
        *("error", "repeated?"),
    )

    MANIFEST_LOADED = _of(
        "manifest.loaded", "info", "The desired file is in force.", "path", "sandboxes"
    )
    MANIFEST_REJECTED = _of(
        "manifest.rejected",
        "error",
        "The desired file is unusable; the last good state stays in force.",
        *("path", "location", "error"),
    )
    MANIFEST_HELD = _of(
        "manifest.held",
        "error",
        "One invalid record or spec is held back and stays as last declared.",
        *("path", "location", "error"),
    )
    MANIFEST_BRAKE = _of(
        "manifest.brake",
        "error",
        "Too many deletions in one edit; none is done until confirmed.",
        *("path", "deletions", "of", "names", "hint"),
    )
    MANIFEST_BRAKE_RELEASED = _of(
        "manifest.brake_released",
        "info",
        "The deletions were confirmed or taken back.",
        *("deletions", "why"),
    )
    MANIFEST_WATCH_FAILED = _of(
        "manifest.watch_failed",
        "warning",
        "The desired file's folder cannot be watched; the rescan still sees edits.",
        *("path", "error", "repeated?"),
    )
    RELOAD_DONE = _of(
        "reload.done",
        "info",
        "The desired file was read again as requested.",
        *("source", "added", "changed", "removed"),
    )
    RELOAD_FAILED = _of(
        "reload.failed",
        "error",
        "The desired file was read again as requested, and something in it cannot be used.",
        *("source", "errors", "awaiting_confirmation"),
    )
    RELOAD_REQUESTED = _of("reload.requested", "info", "A reload was asked for.", "source")

    RECORD_ADDED = _of("record.added", "info", "A sandbox should exist.", "spec", "desired")
    RECORD_CHANGED = _of("record.changed", "info", "A record changed.", "spec", "desired")
    RECORD_DELETED = _of("record.deleted", "info", "A sandbox should no longer exist.")

    SANDBOX_ADOPTED = _of(
        "sandbox.adopted",
        "info",
        "A container that was there already is taken over unchanged.",
        "container",
    )
    SANDBOX_CLAIMED = _of(
        "sandbox.claimed",
        "info",
        "A person had an existing workspace or container taken over.",
        "objects",
    )
    SANDBOX_CREATED = _of(
        "sandbox.created", "info", "Its container is made.", "container", "image", "seconds"
    )
    SANDBOX_STARTED = _of(
        "sandbox.started", "info", "Its container was started.", "container", "seconds"
    )
    SANDBOX_STOPPED = _of(
        "sandbox.stopped", "info", "Its container was stopped.", "container", "seconds"
    )
    SANDBOX_PAUSED = _of("sandbox.paused", "info", "Its processes were frozen.", "container")
    SANDBOX_RESUMED = _of("sandbox.resumed", "info", "Its processes run again.", "container")
    SANDBOX_PAUSED_BY_OTHERS = _of(
        "sandbox.paused_by_others",
        "info",
        "Somebody else froze its processes; it is resumed when that has lasted too long.",
        *("container", "resume_in"),
    )
    SANDBOX_RESTARTED_BY_OTHERS = _of(
        "sandbox.restarted_by_others",
        "warning",
        "Its container was started, and not by this daemon.",
        *("container", "times", "restarts"),
    )
    SANDBOX_DRIFTED = _of(
        "sandbox.drifted",
        "warning",
        "Others changed a limit or the restart policy of its container; it is set back.",
        *("container", "field", "old", "new"),
    )
    SANDBOX_UPDATED = _of(
        "sandbox.updated",
        "info",
        "Its limits and its restart policy were set back in place.",
        "container",
    )
    SANDBOX_RENAMED = _of(
        "sandbox.renamed", "info", "Its container has its own name again.", "old", "new"
    )
    SANDBOX_REMOVED = _of("sandbox.removed", "info", "Its container was removed.", "container")
    SANDBOX_REPLACED = _of(
        "sandbox.replaced",
        "info",
        "A new container with the same workspace, key and ports took over.",
        *("container", "container_id", "old_container_id"),
    )
    SANDBOX_ROLLED_BACK = _of(
        "sandbox.rolled_back",
        "error",
        "The new container could not be started; the old one runs again.",
        *("container", "error"),
    )
    SANDBOX_DIED = _of(
        "sandbox.died",
        "warning",
        "Its container ended while it should run.",
        *("exit_code", "oom_killed", "last_lines", "restart_in", "restarts"),
    )
    SANDBOX_RESTART_LOOP = _of(
        "sandbox.restart_loop",
        "error",
        "It does not stay up: told at 5 restarts in a row, at 10, 20 and so on.",
        "in_a_row",
    )
    SANDBOX_HEALTHY = _of("sandbox.healthy", "info", "It answers its health check.")
    SANDBOX_UNHEALTHY = _of(
        "sandbox.unhealthy",
        "warning",
        "It failed its health check too often; it is restarted.",
        "failures",
    )
    SANDBOX_ERROR = _of(
        "sandbox.error",
        "error",
        "Something keeps it from its desired state; `source` is what, or the step that failed.",
        *("error", "source"),
    )
    SANDBOX_RECOVERED = _of(
        "sandbox.recovered",
        "info",
        "What `sandbox.error` reported is over; `after` is what it was.",
        *("after", "source"),
    )

    SANDBOX_CHECK_UNHEEDED = _of(
        "sandbox.check_unheeded",
        "warning",
        "The image's own HEALTHCHECK fails, and the spec does not use it: nothing is done.",
    )
    PROBE_UNKNOWN = _of(
        "probe.unknown",
        "warning",
        "This sandbox, and perhaps others, cannot be probed; its health stays as it was.",
        "repeated?",
    )
    PROBE_KNOWN = _of(
        "probe.known", "info", "No sandbox is kept from being probed by this cause any more."
    )

    ACTION_FAILED = _of(
        "action.failed",
        "warning",
        "A step on the engine failed again; it is tried again.",
        *("action", "error", "retry_in", "repeated?"),
    )
    ACTION_TIMED_OUT = _of(
        "action.timed_out",
        "warning",
        "A step on the engine did not answer in time, again; what it did is looked up.",
        *("action", "error", "retry_in", "repeated?"),
    )

    PULL_STARTED = _of(
        "pull.started",
        "info",
        "An image is being pulled for these sandboxes.",
        "image",
        "sandboxes",
    )
    PULL_PROGRESS = _of(
        "pull.progress",
        "info",
        "How far the pull is.",
        *("image", "layers", "bytes_done", "bytes_total"),
    )
    PULL_DONE = _of("pull.done", "info", "The image is here.", "image", "seconds")
    PULL_CANCELLED = _of(
        "pull.cancelled", "info", "The pull was ended: no sandbox waits for the image.", "image"
    )
    PULL_FAILED = _of(
        "pull.failed",
        "error",
        "The image could not be pulled; it is tried again, which is logged once a minute.",
        *("image", "error", "sandboxes", "repeated?"),
    )

    PORT_REPLACED = _of(
        "port.replaced",
        "warning",
        "Something else took its host port; it got another.",
        *("old_port", "port"),
    )

    VOLUME_CREATED = _of("volume.created", "info", "A workspace was made.", "volume")
    VOLUME_REMOVED = _of(
        "volume.removed", "info", "A workspace and its content were removed.", "volume"
    )
    VOLUME_LOST = _of(
        "volume.lost",
        "error",
        "A workspace that a record wants was removed by others; what was in it is lost.",
        "volume",
    )
    VOLUME_ORPHANED = _of(
        "volume.orphaned", "info", "No record wants this workspace now.", "volume", "kept_until?"
    )
    VOLUME_CLAIMED = _of("volume.claimed", "info", "A record found its workspace again.", "volume")

    GARBAGE_FOUND = _of(
        "garbage.found",
        "info",
        "Ours, and of no record; removed when the grace is over.",
        *("kind", "name", "remove_in"),
    )
    GARBAGE_REMOVED = _of("garbage.removed", "info", "Garbage was removed.", "kind", "name")
    GARBAGE_FAILED = _of(
        "garbage.failed",
        "warning",
        "Garbage could not be removed; it is tried again.",
        *("kind", "name", "error", "retry_in", "repeated?"),
    )

    GC_HELD = _of(
        "gc.held",
        "error",
        "The mass-delete guard holds back a collection of orphans until it is confirmed.",
        *("deletions", "of", "names", "hint"),
    )
    GC_RELEASED = _of(
        "gc.released",
        "info",
        "The held collection was confirmed, or its orphans have records again.",
        "deletions",
    )

    IMAGE_COLLECTED = _of(
        "image.collected",
        "info",
        "The engine's disk is full: an image that this instance pulled, and nothing uses, went.",
        *("image", "image_id", "bytes"),
    )
    IMAGE_COLLECT_FAILED = _of(
        "image.collect_failed",
        "warning",
        "An image that may go could not be removed; it is tried again.",
        *("image", "error", "repeated?"),
    )

    DISK_PRESSURE = _of(
        "disk.pressure",
        "error",
        "A disk has too little free: no new sandbox is made, what exists goes on.",
        *("disk", "path", "free", "total", "reason"),
    )
    DISK_RELIEVED = _of(
        "disk.relieved",
        "info",
        "The disk has enough free again: new sandboxes are made.",
        *("disk", "path", "free", "total"),
    )
    DISK_UNMEASURED = _of(
        "disk.unmeasured",
        "warning",
        "A disk does not say how much of it is free; what was known of it stays.",
        *("path", "error", "repeated?"),
    )

    STORE_OPENED = _of("store.opened", "info", "The database is open.", "path")
    STORE_UNREADABLE = _of(
        "store.unreadable",
        "error",
        "Rows of the database cannot be read by this release; they are left as they are, and what"
        " they are about is left alone.",
        *("path", "rows"),
    )
    STORE_WRITE_FAILED = _of(
        "store.write_failed",
        "error",
        "Nothing can be written; running sandboxes keep running.",
        "error",
    )
    STORE_RECOVERED = _of("store.recovered", "info", "Writing works again.")

    LIBRARY_LOG = _of(
        "library.log",
        "warning",
        "A library logged something, at a level of its own.",
        *("logger", "message", "error?"),
    )
