"""Models of the desired file: specs, records, the whole file.

A field that a spec omits has the engine's default, except for ``init``, ``network.extra_hosts`` and
the rotation of ``log``. All models are frozen and forbid unknown keys. ``merge`` applies a record's
overrides to its spec.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from reconciler.core.naming import NAME_PATTERN, SESSION_KEY_VARIABLE
from reconciler.core.units import Duration, Retain, Size

Text = Annotated[str, StringConstraints(strict=True)]
NonEmpty = Annotated[str, StringConstraints(strict=True, min_length=1)]
Name = Annotated[str, StringConstraints(strict=True, pattern=NAME_PATTERN)]
Variable = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
AbsolutePath = Annotated[str, StringConstraints(strict=True, pattern=r"^/")]
Owner = Annotated[str, StringConstraints(strict=True, pattern=r"^\d{1,10}(:\d{1,10})?$")]
# Neither may contain a line break, which would end its line in the request.
HeaderName = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", max_length=100),
]
HeaderValue = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[\x20-\x7e\t]*$", max_length=4096),
]
HostHeader = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z_.-]+)(:\d{1,5})?$"),
]
HostName = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[0-9A-Za-z]([0-9A-Za-z_.-]{0,62})$"),
]
RequestPath = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^/[^\x00-\x1f\x7f]*$", max_length=2000),
]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1)]


class DesiredState(StrEnum):
    """The desired state of a record. A sandbox without a record should not exist."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class OnChange(StrEnum):
    """When a container made from an older spec is replaced."""

    RECREATE = "recreate"
    NEXT_START = "next-start"
    IGNORE = "ignore"


class PullPolicy(StrEnum):
    """When an image is pulled before a create."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


class ProbeKind(StrEnum):
    """The kind of health probe."""

    HTTP = "http"
    TCP = "tcp"
    EXEC = "exec"
    DOCKER = "docker"


class Model(BaseModel):
    """Base of all models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PortSpec(Model):
    """A container port that is published on a leased host port."""

    name: Variable = Field(description="Names the URL, and the variable that holds the port.")
    container_port: Annotated[int, Field(strict=True, ge=1, le=65535)]
    description: Text = ""


class WorkspaceSpec(Model):
    """The sandbox's workspace, a named volume."""

    path: AbsolutePath = Field(description="Where the volume is mounted in the container.")
    retain: Retain = Field(
        default=604800.0,
        description="How long the volume outlives its sandbox: a time, forever, or 0.",
        json_schema_extra={"default": "7d"},
    )
    owner: Owner | None = Field(
        default=None,
        description="uid:gid that owns the volume; null: the user that the sandbox runs as.",
    )


class MountSpec(Model):
    """A folder or file of the host, mounted into the container."""

    host_path: AbsolutePath
    container_path: AbsolutePath
    mode: Literal["ro", "rw"] = "rw"


_PROBE_HEADERS: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "upgrade", "expect", "te"}
)


class HealthSpec(Model):
    """The health probe of a sandbox."""

    kind: ProbeKind = Field(
        default=ProbeKind.HTTP,
        description="docker: the image's own HEALTHCHECK, with its own interval and retries.",
    )
    path: RequestPath = "/health"
    scheme: Literal["http", "https"] = Field(
        default="http",
        description="https: over TLS; the certificate is not verified.",
    )
    host: HostHeader | None = Field(
        default=None,
        description="The Host header of an http probe; null: the published address and port.",
    )
    headers: dict[HeaderName, HeaderValue] = Field(
        default={},
        description="More headers of an http probe.",
    )
    port: Variable | None = Field(default=None, description="A port's name; null: the first port.")
    command: tuple[Text, ...] = Field(default=(), description="What an exec probe runs; 0 is good.")
    startup_grace: Duration = Field(default=60.0, json_schema_extra={"default": "60s"})
    interval: Duration = Field(default=10.0, json_schema_extra={"default": "10s"})
    timeout: Duration = Field(default=2.0, json_schema_extra={"default": "2s"})
    failures: Count = 3
    successes: Count = 1

    @model_validator(mode="after")
    def _headers_are_free(self) -> Self:
        for name in self.headers:
            if name.lower() in _PROBE_HEADERS:
                raise ValueError(f"headers: the probe sets {name}; set Host as `host`")
        return self

    @model_validator(mode="after")
    def _exec_has_a_command(self) -> Self:
        if (self.kind is ProbeKind.EXEC) != bool(self.command):
            raise ValueError("an exec probe needs a command, and only an exec probe has one")
        if min(self.interval, self.timeout) <= 0:
            raise ValueError("interval and timeout must be longer than 0")
        return self


class UlimitSpec(Model):
    """A limit of one kind, for instance ``nofile``; -1 is unlimited."""

    soft: Annotated[int, Field(strict=True, ge=-1)]
    hard: Annotated[int, Field(strict=True, ge=-1)]


class ResourcesSpec(Model):
    """The resources of a sandbox. null: no limit."""

    cpus: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None
    memory: Size | None = None
    pids: Count | None = None
    shm: Size | None = None
    gpus: Literal["all"] | Count | tuple[NonEmpty, ...] | None = None
    ulimits: dict[Name, Annotated[int, Field(strict=True, ge=-1)] | UlimitSpec] = {}
    devices: tuple[AbsolutePath, ...] = Field(
        default=(),
        description="Devices of the host: /dev/kvm, or /dev/a:/dev/b:rwm.",
    )


class SecuritySpec(Model):
    """How a sandbox is isolated from the host."""

    cap_drop: tuple[NonEmpty, ...] = ()
    cap_add: tuple[NonEmpty, ...] = ()
    no_new_privileges: Flag = False
    read_only: Flag = False
    runtime: NonEmpty | None = Field(default=None, description="An OCI runtime, such as runsc.")


class NetworkSpec(Model):
    """The network: bridge, host, none, or the name of an existing network."""

    mode: NonEmpty = "bridge"
    extra_hosts: dict[NonEmpty, NonEmpty] = {"host.docker.internal": "host-gateway"}


class RestartSpec(Model):
    """How a sandbox that exited or is unhealthy is restarted."""

    backoff: Duration = Field(default=1.0, json_schema_extra={"default": "1s"})
    max_backoff: Duration = Field(default=60.0, json_schema_extra={"default": "60s"})
    reset_after: Duration = Field(default=600.0, json_schema_extra={"default": "10m"})

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.backoff <= self.max_backoff:
            raise ValueError("backoff must be longer than 0 and at most max_backoff")
        return self


class LogSpec(Model):
    """The log driver of the container.

    With ``driver`` null, the engine's default driver is used: json-file is rotated by ``max_size``
    and ``max_files``; any other driver keeps the host's options.
    """

    driver: NonEmpty | None = Field(
        default=None,
        description="Docker's log driver; null: the engine's own.",
    )
    options: dict[NonEmpty, Text] = Field(
        default={},
        description="Options of the driver, such as tag; they go before max_size and max_files.",
    )
    max_size: Size = Field(default=10 << 20, json_schema_extra={"default": "10m"})
    max_files: Count = 3


class Template(Model):
    """The fields that a spec has and that a record may override."""

    image: NonEmpty | None = Field(default=None, description="By tag, by digest, or by id.")
    command: tuple[Text, ...] | None = Field(default=None, description="null: the image's own.")
    env: dict[Variable, Text] = {}
    env_file: AbsolutePath | None = Field(
        default=None,
        description="KEY=value lines; read at create, watched after.",
    )
    working_dir: AbsolutePath | None = None
    user: NonEmpty | None = Field(default=None, description="uid, uid:gid or a name in the image.")
    init: Flag = Field(default=True, description="A small init reaps zombies and passes signals.")
    pull: PullPolicy = PullPolicy.MISSING
    ports: tuple[PortSpec, ...] = ()
    workspace: WorkspaceSpec | None = None
    mounts: tuple[MountSpec, ...] = ()
    health: HealthSpec | None = Field(
        default=None,
        description="null: no probe; an image's own HEALTHCHECK that fails is only reported.",
    )
    healthcheck: Literal["image", "none"] = Field(
        default="image",
        description="The image's own HEALTHCHECK; none: the engine does not run it.",
    )
    hostname: HostName | None = Field(
        default=None,
        description="The host name in the container; null: the sandbox's name.",
    )
    resources: ResourcesSpec = ResourcesSpec()
    security: SecuritySpec = SecuritySpec()
    network: NetworkSpec = NetworkSpec()
    log: LogSpec = LogSpec()
    restart: RestartSpec = RestartSpec()
    on_change: OnChange = OnChange.RECREATE
    stop_timeout: Duration = Field(default=10.0, json_schema_extra={"default": "10s"})

    @model_validator(mode="after")
    def _session_key_is_ours(self) -> Self:
        if SESSION_KEY_VARIABLE in self.env:
            raise ValueError(f"env: {SESSION_KEY_VARIABLE} is made and kept by the reconciler")
        return self


class SandboxSpec(Template):
    """A complete template, from which a container is created."""

    image: NonEmpty = Field(description="By tag, by digest, or by id.")

    @model_validator(mode="after")
    def _ports_are_distinct(self) -> Self:
        for field in ("name", "container_port"):
            values = [getattr(port, field) for port in self.ports]
            if len(set(values)) < len(values):
                raise ValueError(f"ports: each {field} may be used once")
        return self

    @model_validator(mode="after")
    def _hostname_is_free(self) -> Self:
        if self.hostname is not None and self.network.mode.startswith("container:"):
            raise ValueError("hostname: a sandbox in another container's network has its host name")
        return self

    @model_validator(mode="after")
    def _probe_has_a_target(self) -> Self:
        health = self.health
        if health is None or health.kind is ProbeKind.EXEC:
            return self
        if health.kind is ProbeKind.DOCKER:
            if self.healthcheck == "none":
                raise ValueError("health: kind docker uses what `healthcheck: none` switches off")
            return self
        names = [port.name for port in self.ports]
        if not names:
            raise ValueError("health: a probe over the network needs a port; the spec has none")
        if health.port is not None and health.port not in names:
            raise ValueError(f"health: port {health.port!r} is not one of {', '.join(names)}")
        if self.network.mode == "none":
            raise ValueError("health: a sandbox without a network can only have an exec probe")
        return self


class RecordSpec(Template):
    """One sandbox, or ``replicas`` of it: the spec's name, a state, and overrides."""

    spec: Name
    state: DesiredState = DesiredState.RUNNING
    replicas: Annotated[int, Field(strict=True, ge=0, le=10000)] | None = None


class ManifestFile(Model):
    """One desired file. The files of a folder share their names."""

    version: Literal[1]
    specs: dict[Name, SandboxSpec] = {}
    sandboxes: dict[Name, RecordSpec] = {}


RECORD_ONLY: Final = frozenset({"spec", "state", "replicas"})


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Merge layers, the later ones first: mappings key by key, other values as a whole."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            both = isinstance(below, dict) and isinstance(value, dict)
            merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def layer_of(template: Template) -> dict[str, Any]:
    """Return the fields that a template sets, without defaults, ready to be validated again."""
    return template.model_dump(mode="json", exclude_unset=True, exclude=set(RECORD_ONLY))
