"""Settings: flags, then ``RECONCILER_*`` variables, then the settings file, then defaults."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from reconciler.core.disk_pressure import PressureLimits
from reconciler.core.errors import SettingsError
from reconciler.core.spec import AbsolutePath, MountSpec, Name, PortSpec
from reconciler.core.units import Retain, Size, format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_STATE: Final = Path("/var/lib/reconciler")
CONFIG_CANDIDATES: Final = (
    Path("config/reconciler.yaml"),
    Path("/etc/reconciler/reconciler.yaml"),
)
DESIRED_CANDIDATES: Final = (Path("config/desired.yaml"), Path("/etc/reconciler/desired.yaml"))
# Default of the disk_resume_* settings, as a multiple of disk_min_*.
_RESUME_FACTOR: Final = 1.5


def parse_port_range(value: Any) -> tuple[int, int]:
    """Return the first and the last port of a range such as ``30000-39999``.

    Raises:
        ValueError: it is not a range of ports.
    """
    if isinstance(value, str):
        value = value.split("-")
    try:
        first, last = (int(part) for part in value)
    except (TypeError, ValueError):
        raise ValueError("must be a range of ports such as 30000-39999") from None
    if not 1 <= first <= last <= 65535:  # noqa: PLR2004 - the valid ports
        raise ValueError("must be a range of ports within 1-65535, the lower one first")
    return first, last


PortRange = Annotated[
    tuple[int, int],
    BeforeValidator(parse_port_range),
    PlainSerializer(lambda r: f"{r[0]}-{r[1]}", return_type=str),
]


def parse_seconds(value: Any) -> float:
    """Return the seconds of a duration, or of a bare number of seconds.

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
# The value of a variable is always a string.
Bytes = Annotated[
    Size,
    BeforeValidator(lambda value: int(value) if str(value).isdigit() else value),
]
Prefix = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$", max_length=100)]


class Settings(BaseSettings):
    """All settings. Durations are in seconds and sizes in bytes; users write 30s and 4g."""

    model_config = SettingsConfigDict(
        env_prefix="RECONCILER_",
        # A list in a variable is decoded below, so that an error is reported with all the others.
        enable_decoding=False,
        extra="ignore",
        frozen=True,
        validate_default=False,
    )

    desired: Path = Field(
        default_factory=lambda: _first_existing(DESIRED_CANDIDATES) or DESIRED_CANDIDATES[-1]
    )
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

    docker_host: str | None = Field(default=None, description="null: as Docker's CLI finds it.")
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
        description="For a workspace volume whose spec sets no retention.",
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
        """The control socket of the daemon that uses this state directory."""
        return (self.runtime_dir or self.state_dir) / "control.sock"

    @property
    def webhook(self) -> str | None:
        """The webhook URL that sandboxes get, with the port filled in."""
        return self.webhook_url and self.webhook_url.format(host_port=self.host_port)

    @property
    def disk_limits(self) -> PressureLimits:
        """The free space below which no sandbox is created, and above which that resumes."""
        resume, percent = self.disk_resume_free, self.disk_resume_free_percent
        if resume is None:
            resume = int(self.disk_min_free * _RESUME_FACTOR)
        if percent is None:
            percent = min(self.disk_min_free_percent * _RESUME_FACTOR, 100.0)
        return PressureLimits(self.disk_min_free, self.disk_min_free_percent, resume, percent)

    @field_validator("mounts", "exposed_ports", "pinned_images", mode="before")
    @classmethod
    def _decode_list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("must be a list in JSON, such as [] or [...]") from None

    @model_validator(mode="after")
    def _resume_above(self) -> Self:
        limits = self.disk_limits
        if limits.resume_free < limits.free:
            raise ValueError("disk_resume_free: must not be below disk_min_free")
        if limits.resume_percent < limits.percent:
            raise ValueError("disk_resume_free_percent: must not be below disk_min_free_percent")
        return self


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return systemd's state directory, else the system's for root, else the user's.

    Raises:
        SettingsError: the user has no home directory.
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
            f"state_dir: the user with uid {os.geteuid()} has no home directory: set state_dir"
            " (--state-dir, RECONCILER_STATE_DIR)"
        ) from error


def config_path() -> Path | None:
    """Return the settings file of this process, or None.

    Raises:
        SettingsError: it is in a working directory that root does not trust.
    """
    if named := os.environ.get("RECONCILER_CONFIG"):
        return Path(named)
    return _first_existing(CONFIG_CANDIDATES)


def _first_existing(candidates: tuple[Path, ...]) -> Path | None:
    found = next((candidate for candidate in candidates if os.path.lexists(candidate)), None)
    if found is None or found.is_absolute() or os.geteuid() != 0:
        return found
    # Root uses a file of its working directory only if no other user can change it.
    for path in (found, found.parent, Path()):
        for status in (path.lstat(), path.stat()):
            writers = stat.S_IWOTH if status.st_gid == 0 else stat.S_IWOTH | stat.S_IWGRP
            # The mode of a link means nothing.
            writable = not stat.S_ISLNK(status.st_mode) and status.st_mode & writers
            if status.st_uid != 0 or writable:
                raise SettingsError(
                    f"{found}: root does not read it from this working directory, because"
                    f" another user may change {path}: name the file (--config, --desired), or run"
                    " this command in another directory"
                )
    return found
