"""``doctor``: check the prerequisites of the daemon."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

import click

from reconciler.cli.context import Context, json_option
from reconciler.cli.interrupts import loading
from reconciler.cli.output import say_json

if TYPE_CHECKING:
    from reconciler.cli.commands.doctor_checks import Finding
    from reconciler.settings import Settings

_COLOURS: Final = {"OK": "green", "WARN": "yellow", "FAIL": "bold red", "SKIP": "blue"}


@click.command()
@json_option
@click.pass_obj
def doctor(context: Context, *, as_json: bool) -> int:
    """Check prerequisites, and say how to fix what is wrong.

    \b
      reconciler doctor
      reconciler --state-dir /tmp/try doctor --json

    \b
    Checks the engine and the access to it, the state directory, the host ports, the desired file,
    disk space, and whether a sandbox can reach this host on the webhook port.
    The last check runs a container from an image of the desired file for some seconds. If nothing
    listens on the webhook port (setting host_port), this process does so meanwhile.
    Exit codes: 0 success, 1 a check failed.
    """
    with loading():
        from reconciler.cli import render  # noqa: PLC0415 - slow to load
        from reconciler.telemetry.redact import redactor  # noqa: PLC0415

    findings = asyncio.run(_examine(context.settings()))
    findings = [
        replace(one, found=redactor.clean(one.found), fix=redactor.clean(one.fix))
        for one in findings
    ]
    if as_json:
        say_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            render.print_finding(finding.verdict, _COLOURS[finding.verdict], finding.line)
    return int(any(finding.verdict == "FAIL" for finding in findings))


async def _examine(settings: Settings) -> list[Finding]:
    """Run every check, in the order in which problems are best fixed."""
    with loading():
        from reconciler.cli.commands import doctor_checks as host  # noqa: PLC0415 - slow to load
        from reconciler.cli.commands import doctor_engine_checks as engine_checks  # noqa: PLC0415
        from reconciler.core.errors import EngineError, SettingsError  # noqa: PLC0415
        from reconciler.daemon import make_engine  # noqa: PLC0415 - loads the engine's client

    findings = [
        await host.check_desired_file(settings),
        await host.check_state_directory(settings),
        host.check_ports(settings),
        await host.check_disk("state disk", settings.state_dir, settings),
        *await host.check_exposure(settings),
    ]
    engine = make_engine(settings)
    try:
        info = await engine.info()
    except (EngineError, SettingsError) as error:
        return [engine_checks.no_engine(error), *findings]
    else:
        return [
            engine_checks.check_version(info),
            *findings,
            *await engine_checks.check_engine(settings, engine, info),
        ]
    finally:
        await engine.close()
