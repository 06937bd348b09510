"""The catalogue of log events: every name the daemon logs, its level, meaning and fields.

``python -m reconciler.service.events`` prints docs/events.md from it.
"""

from enum import StrEnum
from typing import Literal, Self

Level = Literal["debug", "info", "warning", "error"]
_Entry = tuple[str, Level, str, tuple[str, ...]]

# Bound to the context of every line that is about one sandbox.
_CONTEXT = ("sandbox", "reconcile_id", "cause")
_ABOUT_SANDBOX = frozenset({"sandbox", "pull", "action", "port"})


def _of(name: str, level: Level, meaning: str, *fields: str) -> _Entry:
    context = _CONTEXT if name.partition(".")[0] in _ABOUT_SANDBOX else ()
    return name, level, meaning, (*context, *fields)


class Event(StrEnum):
    """An event's stable name; users' filters and alerts depend on it, so it never changes.

    Attributes:
        level: The level it is logged at.
        meaning: One sentence for whoever reads the log.
        fields: The fields that it carries beside timestamp, level and event; optional ones too.
    """

    level: Level
    meaning: str
    fields: tuple[str, ...]

    def __new__(cls, name: str, level: Level, meaning: str, fields: tuple[str, ...]) -> Self:
        """Makes a member that is its name."""
        event = str.__new__(cls, name)
        event._value_ = name
        event.level, event.meaning, event.fields = level, meaning, fields
        return event

    DAEMON_STARTED = _of(
        "daemon.started", "info", "The daemon began.", "version", "instance", "pid", "settings"
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
    DAEMON_STOPPED = _of("daemon.stopped", "info", "Shutdown is finished.", "seconds")
    DAEMON_FAILED = _of("daemon.failed", "error", "The daemon cannot go on and ends.", "error")
    DAEMON_STALLED = _of(
        "daemon.stalled", "error", "No worker made progress; the watchdog is not fed.", "seconds"
    )
    DAEMON_OUT_OF_FILES = _of(
        "daemon.out_of_files",
        "error",
        "No more files or connections can be opened; what needs one waits.",
        *("error", "repeated"),
    )
    TASK_FAILED = _of(
        "task.failed",
        "error",
        "A background task failed, which is a defect of this program; it is started again.",
        *("task", "error", "retry_in", "traceback", "repeated"),
    )

    ENGINE_CONNECTED = _of(
        "engine.connected", "info", "The engine answers.", "engine", "version", "api_version"
    )
    ENGINE_LOST = _of(
        "engine.lost",
        "error",
        "The engine cannot be asked; nothing is changed until it answers.",
        *("error", "repeated"),
    )
    ENGINE_SLOW = _of(
        "engine.slow", "warning", "A call took unusually long.", "call", "seconds", "repeated"
    )
    ENGINE_WEDGED = _of(
        "engine.wedged",
        "error",
        "The engine answers questions, and changes hang: it has to be restarted.",
        *("error", "verbs"),
    )
    ENGINE_UNWEDGED = _of("engine.unwedged", "info", "The engine does what it hung at before.")
    ENGINE_STREAM_LOST = _of(
        "engine.stream_lost", "warning", "The event stream ended; a relist follows.", "error"
    )

    MANIFEST_LOADED = _of(
        "manifest.loaded", "info", "The desired file is in force.", "path", "specs", "sandboxes"
    )
    MANIFEST_REJECTED = _of(
        "manifest.rejected",
        "error",
        "The desired file is unusable; the last good state stays in force.",
        *("path", "errors", "repeated"),
    )
    MANIFEST_HELD = _of(
        "manifest.held",
        "error",
        "One invalid record or spec is held back and stays as last declared.",
        *("sandbox", "spec", "location", "error"),
    )
    MANIFEST_BRAKE = _of(
        "manifest.brake",
        "error",
        "Too many deletions in one edit; none is done until confirmed.",
        *("path", "deletions", "of", "names"),
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
        *("path", "error", "repeated"),
    )
    RELOAD_REQUESTED = _of("reload.requested", "info", "A reload was asked for.", "source")

    RECORD_ADDED = _of(
        "record.added", "info", "A sandbox should exist.", "sandbox", "spec", "desired", "source"
    )
    RECORD_CHANGED = _of(
        "record.changed", "info", "A record changed.", "sandbox", "spec", "desired", "source"
    )
    RECORD_DELETED = _of(
        "record.deleted", "info", "A sandbox should no longer exist.", "sandbox", "source"
    )

    SANDBOX_ADOPTED = _of(
        "sandbox.adopted",
        "info",
        "A container that was there already is taken over unchanged.",
        "container",
    )
    SANDBOX_CREATED = _of(
        "sandbox.created", "info", "Its container is made.", "container", "image", "seconds"
    )
    SANDBOX_STARTED = _of("sandbox.started", "info", "Its container was started.", "seconds")
    SANDBOX_STOPPED = _of("sandbox.stopped", "info", "Its container was stopped.", "seconds")
    SANDBOX_PAUSED = _of("sandbox.paused", "info", "Its processes were frozen.")
    SANDBOX_RESUMED = _of("sandbox.resumed", "info", "Its processes go on.")
    SANDBOX_RENAMED = _of(
        "sandbox.renamed", "info", "Its container has its own name again.", "old", "new"
    )
    SANDBOX_REMOVED = _of("sandbox.removed", "info", "Its container was removed.", "container")
    SANDBOX_REPLACED = _of(
        "sandbox.replaced",
        "info",
        "A new container with the same workspace, key and ports took over.",
        *("old_container", "container", "seconds"),
    )
    SANDBOX_ROLLED_BACK = _of(
        "sandbox.rolled_back", "error", "The new container failed; the old one is back.", "error"
    )
    SANDBOX_DIED = _of(
        "sandbox.died",
        "warning",
        "Its container ended while it should run.",
        *("exit_code", "signal", "oom_killed", "last_lines", "restart_in", "restarts", "repeated"),
    )
    SANDBOX_RESTART_LOOP = _of(
        "sandbox.restart_loop",
        "error",
        "It does not stay up: told at 5 restarts in a row, at 10, 20 and so on.",
        "in_a_row",
    )
    SANDBOX_HEALTHY = _of("sandbox.healthy", "info", "It answers its health check.", "seconds")
    SANDBOX_UNHEALTHY = _of(
        "sandbox.unhealthy",
        "warning",
        "It failed its health check too often; it is restarted.",
        *("failures", "error", "restart_in", "repeated"),
    )
    SANDBOX_ERROR = _of(
        "sandbox.error", "error", "It cannot be brought to its desired state.", "error", "repeated"
    )
    SANDBOX_RECOVERED = _of(
        "sandbox.recovered", "info", "What was wrong with it is over.", "after", "complaints"
    )

    ACTION_FAILED = _of(
        "action.failed",
        "warning",
        "A step on the engine failed; it is tried again.",
        *("action", "error", "retry_in", "repeated"),
    )
    ACTION_TIMED_OUT = _of(
        "action.timed_out",
        "warning",
        "A step on the engine did not answer in time; what it did is looked up.",
        *("action", "seconds", "retry_in", "repeated"),
    )

    PULL_STARTED = _of("pull.started", "info", "An image is being pulled.", "image")
    PULL_PROGRESS = _of(
        "pull.progress", "info", "The pull goes on.", "image", "percent", "bytes", "total"
    )
    PULL_DONE = _of("pull.done", "info", "The image is here.", "image", "seconds")
    PULL_FAILED = _of(
        "pull.failed", "error", "The image cannot be had.", "image", "error", "retry_in", "repeated"
    )

    PORT_REPLACED = _of(
        "port.replaced",
        "warning",
        "Something else took its host port; it got another.",
        *("name", "old_port", "port"),
    )

    VOLUME_CREATED = _of(
        "volume.created", "info", "A workspace was made.", "sandbox", "volume", "owner"
    )
    VOLUME_REMOVED = _of(
        "volume.removed", "info", "A workspace and its content were removed.", "volume", "why"
    )
    VOLUME_ORPHANED = _of(
        "volume.orphaned", "info", "No record wants this workspace now.", "volume", "kept_until"
    )
    VOLUME_CLAIMED = _of(
        "volume.claimed", "info", "A record found its workspace again.", "volume", "sandbox"
    )

    GARBAGE_FOUND = _of(
        "garbage.found",
        "info",
        "Ours, and of no record; removed when the grace is over.",
        *("kind", "name", "remove_in"),
    )
    GARBAGE_REMOVED = _of("garbage.removed", "info", "Garbage was removed.", "kind", "name", "why")
    GARBAGE_FAILED = _of(
        "garbage.failed",
        "warning",
        "Garbage could not be removed; it is tried again.",
        *("kind", "name", "error", "repeated"),
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
        *("image", "error", "repeated"),
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
        *("path", "error", "repeated"),
    )

    STORE_OPENED = _of("store.opened", "info", "The database is open.", "path", "schema_version")
    STORE_WRITE_FAILED = _of(
        "store.write_failed",
        "error",
        "Nothing can be written; running sandboxes go on.",
        *("error", "repeated"),
    )
    STORE_RECOVERED = _of("store.recovered", "info", "Writing works again.", "complaints")

    LIBRARY_LOG = _of(
        "library.log",
        "warning",
        "A library logged something, at a level of its own.",
        *("logger", "message", "error"),
    )
