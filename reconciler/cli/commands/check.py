"""``check``: validate the desired file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reconciler.cli.interrupts import loading
from reconciler.cli.output import say

if TYPE_CHECKING:
    from reconciler.cli.context import Context


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def check(context: Context, path: Path | None) -> int:
    """Validate the desired file and its env files.

    \b
      reconciler check
      reconciler check new.yaml && mv new.yaml /etc/reconciler/desired.yaml

    \b
    PATH is a file, or a folder of *.yaml files. No engine is needed, and nothing is changed.
    Exit codes: 0 valid, 1 invalid (every error, as FILE:LINE:COL: message).
    """
    with loading():
        from reconciler.manifest.sync import defaults_of, validate  # noqa: PLC0415 - slow to load
        from reconciler.telemetry.redact import redactor  # noqa: PLC0415

    settings = context.settings()
    checked = path or settings.desired
    loaded, diagnostics = asyncio.run(validate(checked, defaults_of(settings)))
    for diagnostic in diagnostics:
        say(redactor.clean(str(diagnostic)), err=True)
    if diagnostics:
        return 1
    say(f"{checked}: valid, {loaded.specs} specs, {len(loaded.records)} sandboxes")
    return 0
