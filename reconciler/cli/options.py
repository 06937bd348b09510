"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from reconciler.core.units import parse_duration

desired = click.option(
    "--desired",
    type=click.Path(path_type=Path),
    help="The desired file, or a folder of *.yaml files.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
allow_mass_delete = click.option(
    "--allow-mass-delete",
    is_flag=True,
    help="Confirm deletions that the mass-delete guard holds back.",
)


class Duration(click.ParamType[float]):
    """500ms, 30s, 5m, 1h."""

    name = "duration"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
