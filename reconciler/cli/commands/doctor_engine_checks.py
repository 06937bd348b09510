"""The checks of ``doctor`` that ask the engine, or run a container."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reconciler.cli.commands.doctor_checks import Finding, check_disk
from reconciler.cli.remote import RemoteBackend
from reconciler.core import naming
from reconciler.core.container_config import ContainerConfig
from reconciler.core.errors import (
    EngineError,
    EngineTimeout,
    Forbidden,
    NotFound,
    ReconcilerError,
)
from reconciler.core.spec import ProbeKind, SandboxSpec
from reconciler.core.status import UNKNOWN_HEALTH
from reconciler.engine.reachability import why_unreachable
from reconciler.manifest.sync import defaults_of, validate

if TYPE_CHECKING:
    from collections.abc import Collection

    from reconciler.cli.commands.doctor_checks import Verdict
    from reconciler.engine.docker.engine import DockerEngine
    from reconciler.engine.protocol import EngineInfo
    from reconciler.settings import Settings

_OLDEST_ENGINE: Final = (20, 10)
_EXEC_LIMIT: Final = 10.0
# The parts of the engine's API that the daemon cannot work without.
_VITAL: Final = frozenset({"CONTAINERS", "POST"})
_HOST: Final = "host.docker.internal"


def no_engine(error: ReconcilerError) -> Finding:
    """Report that the engine is unreachable."""
    text = str(error)
    fix = "start Docker (`systemctl start docker`), or set DOCKER_HOST"
    if "ermission denied" in text:
        fix = "run as root, or join group docker (which is root on this host) and log in again"
    return Finding("engine", "FAIL", text, fix)


def check_version(info: EngineInfo) -> Finding:
    """Check that the engine is not older than what is supported."""
    found = f"{info.name} {info.version}, API {info.api_version}"
    with suppress(ValueError):
        if tuple(map(int, info.version.split(".")[:2])) < _OLDEST_ENGINE:
            return Finding("engine", "WARN", found, "update it to 20.10 or newer")
    return Finding("engine", "OK", found)


async def check_engine(settings: Settings, engine: DockerEngine, info: EngineInfo) -> list[Finding]:
    """Run each check that needs an engine. Stop at the first that a wedged engine cannot answer."""
    findings = []
    # Not Path.exists: before Python 3.14 it raises if this user may not search the directory.
    there = bool(info.root) and os.path.exists(info.root)  # noqa: ASYNC240, PTH110
    if info.local and there:
        findings.append(await check_disk("engine disk", Path(info.root), settings))
    findings += [check_resource_limits(info), check_published_ports(info, settings.publish_address)]
    status = await asyncio.to_thread(_daemon_status, settings)
    findings += check_probes(status)
    # The daemon knows this already; a wedged engine would block the checks below.
    if wedged := status["engine"].get("wedged"):
        return [*findings, Finding("engine's changes", "FAIL", *wedged.split("; ", 1))]
    access = await check_api_access(engine)
    findings += access
    if any(finding.verdict == "FAIL" for finding in access):
        return findings
    loaded, _ = await validate(settings.desired, defaults_of(settings))
    specs = [record.spec for record in loaded.records.values()]
    try:
        findings += await check_exec_probes(engine, specs)
        return [*findings, await check_host_from_sandbox(settings, engine, specs)]
    except EngineTimeout as error:
        fix = "check whether the engine is overloaded; else restart it (`systemctl restart docker`)"
        return [*findings, Finding("engine's changes", "FAIL", str(error), fix)]


def check_resource_limits(info: EngineInfo) -> Finding:
    """Check that the engine enforces the limits that specs ask for."""
    check = "resource limits"
    if not info.missing_limits:
        return Finding(check, "OK", "the engine enforces cpus, memory and pids")
    fix = "boot with cgroup v2, and delegate its controllers to the user of a rootless engine"
    found = f"the engine does not enforce {', '.join(info.missing_limits)}"
    return Finding(check, "WARN", found, fix)


def check_published_ports(info: EngineInfo, address: str) -> Finding:
    """Check that ports published on ``address`` can be reached from this process."""
    if why := why_unreachable(info, address):
        return Finding("published ports", "FAIL", *why.split(": ", 1))
    return Finding("published ports", "OK", f"ports published on {address} can be reached")


def _daemon_status(settings: Settings) -> dict[str, Any]:
    """Return the running daemon's status, or an empty one if none responds."""
    with suppress(ReconcilerError):
        if daemon := RemoteBackend.connect(settings):
            with daemon:
                return daemon.status(None, secrets=False)
    return {"engine": {}, "sandboxes": []}


def check_probes(status: dict[str, Any]) -> list[Finding]:
    """Report each reason why the running daemon cannot probe sandboxes; it ends with the fix."""
    reasons = Counter(
        row["reason"].removeprefix(UNKNOWN_HEALTH)
        for row in status["sandboxes"]
        if row["reason"].startswith(UNKNOWN_HEALTH)
    )
    findings = []
    for reason, count in reasons.items():
        why, _, fix = reason.partition(": ")
        found = f"{why} (sandboxes that cannot be probed: {count})"
        findings.append(Finding("probes", "FAIL", found, fix))
    return findings


async def check_api_access(engine: DockerEngine) -> list[Finding]:
    """Report what is allowed in one finding, and each forbidden part of the API in another."""
    try:
        access = await engine.access()
    except EngineError as error:
        fix = "check whether the engine is overloaded"
        return [Finding("engine API", "FAIL", str(error), fix)]
    allowed = " ".join(part for part, refusal in access.items() if refusal is None)
    findings = [Finding("engine API", "OK", f"{allowed} allowed")]
    for part, refusal in access.items():
        if refusal is not None:
            found, _, fix = str(refusal).rpartition("; ")
            verdict: Verdict = "FAIL" if part in _VITAL else "WARN"
            findings.append(Finding(f"engine API {part}", verdict, found, fix))
    return findings


async def check_exec_probes(engine: DockerEngine, specs: Collection[SandboxSpec]) -> list[Finding]:
    """Check the right to run commands in containers, if a probe needs it."""
    if not any(spec.health and spec.health.kind is ProbeKind.EXEC for spec in specs):
        return []
    try:
        # The container does not exist, so that the answer is about the right alone.
        await engine.run_in(f"no-such-{secrets.token_hex(8)}", ["true"], _EXEC_LIMIT)
    except NotFound:
        return [Finding("exec probes", "OK", "the engine allows commands in containers")]
    except Forbidden as error:
        fix = "allow it in the proxy before the engine (POST=1, EXEC=1), or use http or tcp probes"
        found = f"the engine forbids commands in containers: {error}"
        return [Finding("exec probes", "FAIL", found, fix)]
    except EngineTimeout:
        raise
    except EngineError as error:
        return [Finding("exec probes", "WARN", str(error), "check that the engine allows exec")]
    return []


async def check_host_from_sandbox(
    settings: Settings, engine: DockerEngine, specs: Collection[SandboxSpec]
) -> Finding:
    """Check whether a container reaches this host on the webhook port."""
    port = settings.host_port
    check = f"host from a sandbox, port {port}"
    reached = None
    async with AsyncExitStack() as stack:
        # If nothing listens on the port, listen there during the check.
        with suppress(OSError):
            server = await asyncio.start_server(
                lambda _, writer: writer.close(),
                "0.0.0.0",  # noqa: S104 - what the container connects to
                port,
            )
            await stack.enter_async_context(server)
        for image in sorted({spec.image for spec in specs}):
            try:
                reached = await _reaches_host(settings, engine, image)
            except EngineTimeout:
                raise
            except EngineError:
                continue
            if reached is not None:
                break
    if reached is None:
        found = "no image of the desired file is here that has a shell and a tool to connect"
        return Finding(check, "SKIP", found)
    if reached:
        return Finding(check, "OK", f"a container reaches {_HOST}")
    fix = (
        f"let containers in: iptables -I INPUT -i docker0 -p tcp --dport {port} -j ACCEPT; and "
        "make the server there listen on more than 127.0.0.1"
    )
    return Finding(check, "WARN", f"a container does not reach {_HOST}", fix)


# The tools differ between images. A shell exits with 126 or 127 if it cannot run a command.
_CANNOT_RUN: Final = 126
_SCRIPT: Final = """
has() { command -v "$1" >/dev/null 2>&1; }
quietly() { "$@" </dev/null >/dev/null 2>&1; [ $? = 0 ]; }
if has nc; then quietly nc -w 3 "$1" "$2"
elif has timeout && has bash; then quietly timeout 3 bash -c "exec 3<>/dev/tcp/$1/$2"
elif has python3; then
  quietly python3 -c "import socket; socket.create_connection(('$1', $2), 3)"
else exit 127
fi
"""


async def _reaches_host(settings: Settings, engine: DockerEngine, image: str) -> bool | None:
    """Run a container and connect from it; None if the image is missing or has no tool for it.

    Raises:
        EngineTimeout: the engine does not create or remove the container in time.
    """
    if not await engine.has_image(image):
        return None
    config = ContainerConfig(
        name=f"{settings.container_name_prefix}doctor.{secrets.token_hex(4)}",
        # The labels name no sandbox, so that no daemon adopts the container.
        labels={**dict.fromkeys(naming.LABELS, ""), naming.LABEL_INSTANCE: settings.instance},
        spec=SandboxSpec(image=image, command=("sh", "-c", "sleep 60")),
        env={},
        ports={},
        publish_address=settings.publish_address,
        volume=None,
    )
    container = await engine.create(config)
    try:
        await engine.start(container)
        command = ["sh", "-c", _SCRIPT, "reach", _HOST, str(settings.host_port)]
        code = await engine.run_in(container, command, _EXEC_LIMIT)
    finally:
        await engine.remove(container)
    return None if code >= _CANNOT_RUN else code == 0
