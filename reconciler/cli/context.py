"""The settings of one invocation, and the options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reconciler.cli.interrupts import loading

if TYPE_CHECKING:
    from reconciler.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """The group's options. The settings are read when a command needs them."""

    config: Path | None
    flags: dict[str, Any]

    def settings(self, **flags: Any) -> Settings:
        """Return the settings of this invocation; ``flags`` are those of the command.

        Raises:
            SettingsError: a setting is invalid.
        """
        with loading():
            from reconciler.manifest.settings_file import load  # noqa: PLC0415 - slow to load

        return load(self.config, **{**self.flags, **flags})

    def with_config(self, config: Path | None) -> Context:
        """Return the same context with another settings file, if one is given."""
        return replace(self, config=config or self.config)


class Duration(click.ParamType[float]):
    """A duration such as 500ms, 30s, 5m or 1h; the value is in seconds."""

    name = "duration"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Return the seconds, or fail with a usage error."""
        from reconciler.core.units import parse_duration  # noqa: PLC0415 - slow to load

        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


desired_option = click.option(
    "--desired",
    type=click.Path(path_type=Path),
    help="The desired file, or a folder of *.yaml files.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
mass_delete_option = click.option(
    "--allow-mass-delete",
    is_flag=True,
    help="Allow deletions blocked by the mass-delete guard.",
)
