"""Settings: flags, then ``RECONCILER_*`` variables, then the settings file, then defaults."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from reconciler.core.disk_pressure import Limits
from reconciler.core.errors import SettingsError
from reconciler.core.spec import AbsolutePath, MountSpec, Name, PortSpec
from reconciler.core.units import Retain, Size, format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SYSTEM_STATE: Final = Path("/var/lib/reconciler")
CONFIG_CANDIDATES: Final = (
    Path("config/reconciler.yaml"),
    Path("/etc/reconciler/reconciler.yaml"),
)
DESIRED_CANDIDATES: Final = (Path("config/desired.yaml"), Path("/etc/reconciler/desired.yaml"))
# How much more than the least has to be free again, where nothing says how much.
_RESUME_FACTOR: Final = 1.5


def parse_port_range(value: Any) -> tuple[int, int]:
    """``30000-39999`` as its first and last port.

    Raises:
        ValueError: it is not a range of ports.
    """
    if isinstance(value, str):
        value = value.split("-")
    try:
        first, last = (int(part) for part in value)
    except (TypeError, ValueError):
        raise ValueError("must be a range of ports such as 30000-39999") from None
    if not 1 <= first <= last <= 65535:  # noqa: PLR2004 - the ports that exist
        raise ValueError("must be a range of ports within 1-65535, the lower one first")
    return first, last


PortRange = Annotated[
    tuple[int, int],
    NoDecode,
    BeforeValidator(parse_port_range),
    PlainSerializer(lambda r: f"{r[0]}-{r[1]}", return_type=str),
]


def parse_seconds(value: Any) -> float:
    """A duration; in a setting, a bare number is seconds.

    Raises:
        ValueError: it is neither.
    """
    text = str(value)
    return parse_duration(f"{text}s" if text.replace(".", "", 1).isdigit() else value)


Seconds = Annotated[
    float,
    BeforeValidator(parse_seconds),
    PlainSerializer(format_duration, return_type=str),
]
# A variable has no numbers, only text.
Bytes = Annotated[
    Size,
    BeforeValidator(lambda value: int(value) if str(value).isdigit() else value),
]
Prefix = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$", max_length=100)]


class Settings(BaseSettings):
    """Every setting. Durations are seconds and sizes bytes once read; a file writes 30s and 4g."""

    model_config = SettingsConfigDict(
        env_prefix="RECONCILER_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        validate_default=False,
    )

    desired: Path = Field(default_factory=lambda: _first_that_exists(DESIRED_CANDIDATES))
    state_dir: Path = Field(default_factory=lambda: default_state_dir(os.environ))
    runtime_dir: Path | None = None
    instance: Name = "default"
    container_name_prefix: Prefix = "oh-agent-server-"

    port_range: PortRange = (30000, 39999)
    publish_address: str = "127.0.0.1"
    container_url_pattern: str = "http://localhost:{port}"
    host_port: int = Field(default=3000, ge=1, le=65535)
    webhook_url: str | None = "http://host.docker.internal:{host_port}/api/v1/webhooks"
    mounts: tuple[MountSpec, ...] = ()
    exposed_ports: tuple[PortSpec, ...] = ()
    health_check_path: AbsolutePath | None = None

    docker_host: str | None = Field(default=None, description="null: as Docker's clients find it.")
    engine_timeout: Seconds = 60.0
    read_timeout: Seconds = 15.0
    pull_timeout: Seconds = 3600.0
    workers: int = Field(default=64, ge=1, le=1000)
    concurrent_removals: int = Field(default=4, ge=1, le=100)
    resync_interval: Seconds = 60.0
    rescan_interval: Seconds = 10.0

    foreign_pause_grace: Seconds = 30.0

    gc_grace: Seconds = 300.0
    volume_retain: Retain = Field(
        default=604800.0,
        description="For a volume that nothing says how long to keep.",
    )
    brake_count: int = Field(default=3, ge=0)
    brake_percent: float = Field(default=30.0, ge=0, le=100)
    ledger_rows: int = Field(default=100_000, ge=100)
    disk_min_free: Bytes = 1 << 30
    disk_min_free_percent: float = Field(default=1.0, ge=0, le=100)
    disk_resume_free: Bytes | None = None
    disk_resume_free_percent: float | None = Field(default=None, ge=0, le=100)
    image_min_age: Seconds = 86400.0
    pinned_images: tuple[str, ...] = ()

    log_format: Literal["auto", "json", "console", "journal"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def socket(self) -> Path:
        """The control socket of the daemon that works on this state directory."""
        return (self.runtime_dir or self.state_dir) / "control.sock"

    @property
    def webhook(self) -> str | None:
        """The webhook URL that sandboxes are given."""
        return self.webhook_url and self.webhook_url.format(host_port=self.host_port)

    @property
    def disk_limits(self) -> Limits:
        """When a disk is too full for new sandboxes, and when no longer."""
        resume, percent = self.disk_resume_free, self.disk_resume_free_percent
        if resume is None:
            resume = int(self.disk_min_free * _RESUME_FACTOR)
        if percent is None:
            percent = min(self.disk_min_free_percent * _RESUME_FACTOR, 100.0)
        return Limits(self.disk_min_free, self.disk_min_free_percent, resume, percent)

    @model_validator(mode="after")
    def _resume_above(self) -> Self:
        limits = self.disk_limits
        if limits.resume_free < limits.free:
            raise ValueError("disk_resume_free: must not be below disk_min_free")
        if limits.resume_percent < limits.percent:
            raise ValueError("disk_resume_free_percent: must not be below disk_min_free_percent")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is the library's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, variables, file: in this order."""
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, dict(_file_values.get())),
        )


# The settings file's values, for the construction that ``file_values`` surrounds.
_file_values: ContextVar[Mapping[str, Any]] = ContextVar(
    "file_values", default=MappingProxyType({})
)


@contextmanager
def file_values(values: Mapping[str, Any]) -> Iterator[None]:
    """Give a ``Settings`` that is constructed inside the values of the settings file."""
    token = _file_values.set(values)
    try:
        yield
    finally:
        _file_values.reset(token)


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """The service manager's choice, else the system's folder for root, else the user's own.

    Raises:
        SettingsError: the user has no home folder.
    """
    if directory := environ.get("STATE_DIRECTORY"):
        return Path(directory.split(":")[0])
    if os.geteuid() == 0:
        return SYSTEM_STATE
    if base := environ.get("XDG_STATE_HOME"):
        return Path(base) / "reconciler"
    try:
        return Path.home() / ".local" / "state" / "reconciler"
    except RuntimeError as error:
        raise SettingsError(
            f"state_dir: the user with uid {os.geteuid()} has no home folder: set state_dir"
            " (--state-dir, RECONCILER_STATE_DIR)"
        ) from error


def config_path() -> Path | None:
    """The settings file of this process; None where there is none.

    Raises:
        SettingsError: it is in the working directory, and root does not trust that.
    """
    if named := os.environ.get("RECONCILER_CONFIG"):
        return Path(named)
    return next((path for path in CONFIG_CANDIDATES if _is_there(path)), None)


def _first_that_exists(candidates: tuple[Path, ...]) -> Path:
    return next((path for path in candidates if _is_there(path)), candidates[-1])


def _is_there(candidate: Path) -> bool:
    """Whether the file exists. Root reads it from a working directory only where that is safe."""
    if not os.path.lexists(candidate):
        return False
    if os.geteuid() == 0 and not candidate.is_absolute():
        for path in (candidate, candidate.parent, Path()):
            for status in (path.lstat(), path.stat()):
                _refuse_foreign(candidate, path, status)
    return True


def _refuse_foreign(candidate: Path, path: Path, status: os.stat_result) -> None:
    writers = stat.S_IWOTH if status.st_gid == 0 else stat.S_IWOTH | stat.S_IWGRP
    # A link has no mode of its own.
    writable = not stat.S_ISLNK(status.st_mode) and status.st_mode & writers
    if status.st_uid != 0 or writable:
        raise SettingsError(
            f"{candidate}: root does not read it from this working directory, since another user"
            f" may change {path}: name the file (--config, --desired), or run this"
            " command in another directory"
        )
