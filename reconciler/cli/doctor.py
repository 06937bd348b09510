"""``doctor``: what stands in the way, and how to mend it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import click

from reconciler.cli import options
from reconciler.cli.interrupts import loading
from reconciler.cli.output import say_json

if TYPE_CHECKING:
    from reconciler.cli.context import Context

_COLOURS: Final = {"OK": "green", "WARN": "yellow", "FAIL": "bold red", "SKIP": "blue"}


@click.command()
@options.as_json
@click.pass_obj
def doctor(context: Context, *, as_json: bool) -> int:
    """Check everything that the daemon needs, and say how to mend what is wrong.

    \b
      reconciler doctor
      reconciler --state-dir /tmp/try doctor --json

    \b
    The engine and the right to use it, the state directory, the host ports, the desired file,
    disk space, and whether a sandbox can reach this host on the webhook port. For the last check, a
    container is started from an image of the desired file, for some seconds, and where nothing
    listens on the webhook port (setting host_port), this process listens there meanwhile.
    Exit codes: 0, or 1 where a check fails.
    """
    with loading():
        from reconciler.cli import render  # noqa: PLC0415 - slow to load
        from reconciler.cli.checks import examine  # noqa: PLC0415 - it loads the engine's client
        from reconciler.telemetry.redact import redactor  # noqa: PLC0415

    findings = asyncio.run(examine(context.settings()))
    findings = [replace(one, found=redactor.clean(one.found)) for one in findings]
    if as_json:
        say_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            render.print_finding(finding.verdict, _COLOURS[finding.verdict], finding.line)
    return int(any(finding.verdict == "FAIL" for finding in findings))


COMMANDS = (doctor,)
