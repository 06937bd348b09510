"""Events of the process: start and end, its tasks, its database, its libraries."""

from reconciler.telemetry.events.base import Event, RepeatedEvent, log_event


@log_event("daemon.started")
class DaemonStarted(Event):
    """The daemon started."""

    version: str
    instance: str
    pid: int


@log_event("daemon.ready")
class DaemonReady(Event):
    """Start-up is finished: the first full list succeeded, or `daemon.waiting` was logged."""

    seconds: float
    records: int


@log_event("daemon.waiting", "warning")
class DaemonWaiting(Event):
    """Started without the engine; reconciling begins when it responds."""


@log_event("daemon.stopping")
class DaemonStopping(Event):
    """Shutdown began; the sandboxes keep running."""

    signal: str


@log_event("daemon.stopped")
class DaemonStopped(Event):
    """Shutdown is finished."""


@log_event("daemon.failed", "error")
class DaemonFailed(Event):
    """The daemon cannot continue and exits."""

    error: str
    traceback: str | None = None


@log_event("daemon.stalled", "error")
class DaemonStalled(RepeatedEvent):
    """Tasks hang. The service manager's watchdog is not fed until they continue."""

    tasks: list[str]


@log_event("daemon.out_of_files", "error")
class DaemonOutOfFiles(RepeatedEvent):
    """The file descriptor limit is reached; work that needs a file or a connection waits."""

    error: str


@log_event("task.failed", "error")
class TaskFailed(RepeatedEvent):
    """A background task failed (an internal error, please report it); it is restarted."""

    task: str
    error: str
    retry_in: float | None = None
    traceback: str | None = None


@log_event("store.opened")
class StoreOpened(Event):
    """The database is open."""

    path: str


@log_event("store.unreadable", "error")
class StoreUnreadable(Event):
    """This release cannot read some rows of the database; the rows and their objects stay as is."""

    path: str
    rows: list[str]


@log_event("store.write_failed", "error")
class StoreWriteFailed(Event):
    """The database cannot be written; running sandboxes keep running."""

    error: str


@log_event("store.recovered")
class StoreRecovered(Event):
    """The database can be written again."""


@log_event("library.log", "warning")
class LibraryLog(Event):
    """A library logged a message; the line has the level that the library gave it."""

    logger: str
    message: str
    error: str | None = None
