"""Events of one sandbox: its container, its health, its ports."""

from reconciler.telemetry.events.base import RepeatedEvent, SandboxEvent, log_event


@log_event("sandbox.adopted")
class SandboxAdopted(SandboxEvent):
    """An existing container was adopted unchanged."""

    container: str


@log_event("sandbox.claimed")
class SandboxClaimed(SandboxEvent):
    """A person had an existing workspace or container adopted."""

    objects: list[str]


@log_event("sandbox.created")
class SandboxCreated(SandboxEvent):
    """The container was created."""

    container: str
    image: str
    seconds: float


@log_event("sandbox.started")
class SandboxStarted(SandboxEvent):
    """The container was started."""

    container: str
    seconds: float


@log_event("sandbox.stopped")
class SandboxStopped(SandboxEvent):
    """The container was stopped."""

    container: str
    seconds: float


@log_event("sandbox.paused")
class SandboxPaused(SandboxEvent):
    """The container was paused."""

    container: str


@log_event("sandbox.resumed")
class SandboxResumed(SandboxEvent):
    """The container was resumed (unpaused)."""

    container: str


@log_event("sandbox.paused_by_others")
class SandboxPausedByOthers(SandboxEvent):
    """Someone else paused the container; it is resumed after `resume_in` seconds."""

    container: str
    resume_in: float


@log_event("sandbox.restarted_by_others", "warning")
class SandboxRestartedByOthers(SandboxEvent):
    """Someone else started the container."""

    container: str
    times: int
    restarts: int


@log_event("sandbox.drifted", "warning")
class SandboxDrifted(SandboxEvent):
    """Someone else changed a limit or the restart policy of the container; it is set back."""

    container: str
    field: str
    old: int | str
    new: int | str


@log_event("sandbox.updated")
class SandboxUpdated(SandboxEvent):
    """The limits and the restart policy of the container were set back in place."""

    container: str


@log_event("sandbox.renamed")
class SandboxRenamed(SandboxEvent):
    """The container got the sandbox's name back."""

    old: str
    new: str


@log_event("sandbox.removed")
class SandboxRemoved(SandboxEvent):
    """The container was removed."""

    container: str


@log_event("sandbox.replaced")
class SandboxReplaced(SandboxEvent):
    """A new container with the same workspace, session key and ports replaced the old one."""

    container: str
    container_id: str
    old_container_id: str


@log_event("sandbox.rolled_back", "error")
class SandboxRolledBack(SandboxEvent):
    """The new container could not be started; the old one runs again."""

    container: str
    error: str


@log_event("sandbox.died", "warning")
class SandboxDied(SandboxEvent):
    """The container exited while it should run."""

    exit_code: int
    oom_killed: bool
    last_lines: list[str]
    restart_in: float
    restarts: int


@log_event("sandbox.restart_loop", "error")
class SandboxRestartLoop(SandboxEvent):
    """Crash loop: reported at 5, 10, 20, … consecutive restarts."""

    in_a_row: int


@log_event("sandbox.healthy")
class SandboxHealthy(SandboxEvent):
    """The health probe succeeds."""


@log_event("sandbox.unhealthy", "warning")
class SandboxUnhealthy(SandboxEvent):
    """The health probe failed too often; the container is restarted."""

    failures: int


@log_event("sandbox.error", "error")
class SandboxError(SandboxEvent):
    """The sandbox cannot reach its desired state; `source` is the obstacle or the failed step."""

    error: str
    source: str


@log_event("sandbox.recovered")
class SandboxRecovered(SandboxEvent):
    """A problem that `sandbox.error` reported is over; `after` is its error."""

    after: str
    source: str


@log_event("sandbox.check_unheeded", "warning")
class SandboxCheckUnheeded(SandboxEvent):
    """The image's HEALTHCHECK fails, but the spec does not use it: nothing is done."""


@log_event("probe.unknown", "warning")
class ProbeUnknown(SandboxEvent, RepeatedEvent):
    """This sandbox, and perhaps others, cannot be probed; its health stays as it was."""


@log_event("probe.known")
class ProbeKnown(SandboxEvent):
    """No sandbox is kept from being probed by this cause any more."""


@log_event("action.failed", "warning")
class ActionFailed(SandboxEvent, RepeatedEvent):
    """An action on the engine failed again; it is retried."""

    action: str
    error: str
    retry_in: float


@log_event("action.timed_out", "warning")
class ActionTimedOut(SandboxEvent, RepeatedEvent):
    """An action on the engine timed out again; its outcome is read from the engine."""

    action: str
    error: str
    retry_in: float


@log_event("port.replaced", "warning")
class PortReplaced(SandboxEvent):
    """Another process uses the host port; the sandbox got a new one."""

    old_port: int
    port: int
