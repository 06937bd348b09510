"""What the options of the command group say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from reconciler.cli.interrupts import loading

if TYPE_CHECKING:
    from pathlib import Path

    from reconciler.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """What the group's options say; settings are read when a command needs them."""

    config: Path | None
    flags: dict[str, Any]

    def settings(self, **flags: Any) -> Settings:
        """The settings of this invocation.

        Raises:
            SettingsError: one of them is wrong.
        """
        with loading():
            from reconciler.manifest.settings_file import load  # noqa: PLC0415 - slow, not for --help

        return load(self.config, **{**self.flags, **flags})

    def reading(self, config: Path | None) -> Context:
        """The same with another settings file, where one is given."""
        return replace(self, config=config or self.config)
