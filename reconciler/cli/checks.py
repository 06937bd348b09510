"""The checks of ``doctor``. Each says what it found, and how to mend what is wrong."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from reconciler.cli.exposure import weaknesses
from reconciler.cli.reach import webhook_reach
from reconciler.cli.remote import Client
from reconciler.core.disk_pressure import Usage, judge, size
from reconciler.core.errors import (
    EngineError,
    EngineTimeout,
    Forbidden,
    NotFound,
    ReconcilerError,
    SettingsError,
)
from reconciler.core.spec import ProbeKind
from reconciler.core.status import UNKNOWN_HEALTH
from reconciler.daemon import make_engine
from reconciler.engine.docker.host import resolve
from reconciler.engine.reachability import why_unreachable
from reconciler.manifest.sync import defaults_of, validate
from reconciler.reconcile.identity import can_bind
from reconciler.resources.disk_guard import space_of
from reconciler.store.lock import holder
from reconciler.store.store import Store
from reconciler.threads import BoundedCalls

if TYPE_CHECKING:
    from reconciler.engine.docker.engine import DockerEngine
    from reconciler.engine.protocol import EngineInfo
    from reconciler.manifest.loader import Loaded
    from reconciler.settings import Settings

Verdict = Literal["OK", "WARN", "FAIL", "SKIP"]
_OLDEST_ENGINE: Final = (20, 10)
_SAMPLED_PORTS: Final = 200
_MANY: Final = 0.5
_EXEC_LIMIT: Final = 10.0
# The parts of the engine's API without which nothing can be done.
_VITAL: Final = frozenset({"CONTAINERS", "POST"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result; ``mend`` is empty where nothing is wrong."""

    check: str
    verdict: Verdict
    found: str
    mend: str = ""

    @property
    def line(self) -> str:
        """For a person."""
        return f"{self.check}: {self.found}" + (f"\n      -> {self.mend}" if self.mend else "")

    def as_dict(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)


async def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order in which one would mend things."""
    findings = [await _desired(settings), await _state(settings), _ports(settings)]
    findings.append(await _disk("state disk", settings.state_dir, settings))
    findings += await _exposure(settings)
    engine = make_engine(settings)
    try:
        info = await engine.info()
    except (EngineError, SettingsError) as error:
        return [_no_engine(error), *findings]
    else:
        return [_engine(info), *findings, *await _through_engine(settings, engine, info)]
    finally:
        await engine.close()


async def _exposure(settings: Settings) -> list[Finding]:
    check = "exposure"
    try:
        endpoint = resolve(settings.docker_host, os.environ)
    except SettingsError:
        endpoint = None  # the engine's own check says it
    try:
        found = await BoundedCalls().run(check, lambda: weaknesses(settings, endpoint))
    except OSError as error:
        return [Finding(check, "WARN", str(error), "see that the paths can be reached")]
    return [Finding(check, "WARN", what, mend) for what, mend in found] or [
        Finding(check, "OK", "the engine, the state and the desired file are closed to others")
    ]


def _no_engine(error: ReconcilerError) -> Finding:
    text = str(error)
    mend = "start Docker (`systemctl start docker`), or set DOCKER_HOST"
    if "ermission denied" in text:
        mend = "run as root, or join group docker (which is root on this host) and log in anew"
    return Finding("engine", "FAIL", text, mend)


def _engine(info: EngineInfo) -> Finding:
    found = f"{info.name} {info.version}, API {info.api_version}"
    with suppress(ValueError):
        if tuple(map(int, info.version.split(".")[:2])) < _OLDEST_ENGINE:
            return Finding("engine", "WARN", found, "update it to 20.10 or newer")
    return Finding("engine", "OK", found)


def _limits(info: EngineInfo) -> Finding:
    if not info.missing_limits:
        return Finding("resource limits", "OK", "the engine enforces cpus, memory and pids")
    mend = "boot with cgroup v2, and delegate its controllers to the user of a rootless engine"
    found = f"the engine does not enforce {', '.join(info.missing_limits)}"
    return Finding("resource limits", "WARN", found, mend)


async def _desired(settings: Settings) -> Finding:
    loaded, diagnostics = await validate(settings.desired, defaults_of(settings))
    if diagnostics:
        mend = f"see all of it with `reconciler check {settings.desired}`"
        return Finding("desired file", "FAIL", str(diagnostics[0]), mend)
    return Finding("desired file", "OK", f"{settings.desired}: {len(loaded.records)} sandboxes")


async def _state(settings: Settings) -> Finding:
    folder = settings.state_dir
    try:
        async with await Store.open_readonly(folder) as store:
            records = len(store.records)
    except ReconcilerError as error:
        return Finding("state directory", "FAIL", str(error), "the message says how")
    pid = holder(folder)
    running = f", held by the daemon with pid {pid}" if pid else ""
    if not os.access(_nearest(folder), os.W_OK):
        return Finding("state directory", "FAIL", f"{folder}: not writable", f"chown {folder}")
    return Finding("state directory", "OK", f"{folder}: {records} records{running}")


def _ports(settings: Settings) -> Finding:
    first, last = settings.port_range
    step = max((last - first + 1) // _SAMPLED_PORTS, 1)
    sample = range(first, last + 1, step)
    free = sum(can_bind(settings.publish_address, port) for port in sample)
    found = f"{first}-{last}: {free} of {len(sample)} tried are free"
    if not free:
        return Finding("host ports", "FAIL", found, "set port_range to a range that is free")
    if free < _MANY * len(sample):
        return Finding("host ports", "WARN", found, "widen port_range")
    return Finding("host ports", "OK", found)


async def _disk(check: str, path: Path, settings: Settings) -> Finding:
    try:
        space = await BoundedCalls().run(path, lambda: space_of(_nearest(path)))
    except OSError as error:
        return Finding(check, "WARN", f"{path}: {error.strerror}", "see that it can be reached")
    usage = Usage(check, str(path), space.free, space.total)
    found = f"{path}: {size(usage.free)} of {size(usage.total)} free"
    if judge((), [usage], settings.disk_limits):
        limits = settings.disk_limits
        least, enough = limits.least(usage.total), limits.enough(usage.total)
        mend = (
            f"below {size(least)} no new sandbox is made: free some, up to {size(enough)} "
            "(settings disk_min_free, disk_min_free_percent)"
        )
        return Finding(check, "FAIL", found, mend)
    return Finding(check, "OK", found)


async def _through_engine(
    settings: Settings,
    engine: DockerEngine,
    info: EngineInfo,
) -> list[Finding]:
    findings = []
    root = _local_root(info)
    if root is not None:
        findings.append(await _disk("engine disk", root, settings))
    loaded, _ = await validate(settings.desired, defaults_of(settings))
    findings += [_limits(info), _published_ports(info, settings.publish_address)]
    status = await asyncio.to_thread(_status, settings)
    findings += _unknown_health(status)
    # First what the daemon knows: a wedged engine answers none of the questions below.
    if wedged := status["engine"].get("wedged"):
        return [*findings, Finding("engine's changes", "FAIL", *wedged.split(": ", 1))]
    access = await _access(engine)
    findings += access
    if any(finding.verdict == "FAIL" for finding in access):
        return findings
    try:
        findings += await _exec_probes(engine, loaded)
        return [*findings, await _webhook(settings, engine, loaded)]
    except EngineTimeout as error:
        mend = "see whether it is overloaded; else restart it (`systemctl restart docker`)"
        return [*findings, Finding("engine's changes", "FAIL", str(error), mend)]


async def _access(engine: DockerEngine) -> list[Finding]:
    """One line of what is allowed, and one for each part of the API that is forbidden."""
    try:
        access = await engine.access()
    except EngineError as error:
        return [Finding("engine API", "FAIL", str(error), "see whether the engine is overloaded")]
    allowed = " ".join(part for part, refusal in access.items() if refusal is None)
    findings = [Finding("engine API", "OK", f"{allowed} allowed")]
    for part, refusal in access.items():
        if refusal is not None:
            found, _, mend = str(refusal).rpartition("; ")
            verdict: Verdict = "FAIL" if part in _VITAL else "WARN"
            findings.append(Finding(f"engine API {part}", verdict, found, mend))
    return findings


def _status(settings: Settings) -> dict[str, Any]:
    """The running daemon's status; an empty one where no daemon answers."""
    with suppress(ReconcilerError):
        if daemon := Client.connect(settings):
            with daemon:
                return daemon.status(None, secrets=False)
    return {"engine": {}, "sandboxes": []}


def _published_ports(info: EngineInfo, address: str) -> Finding:
    if why := why_unreachable(info, address):
        return Finding("published ports", "FAIL", *why.split(": ", 1))
    return Finding("published ports", "OK", f"ports published on {address} can be reached")


def _unknown_health(status: dict[str, Any]) -> list[Finding]:
    """Each cause for which the running daemon cannot probe sandboxes, and how to fix it."""
    reasons = Counter(row["reason"] for row in status["sandboxes"])
    causes = {
        reason.removeprefix(UNKNOWN_HEALTH): count
        for reason, count in reasons.items()
        if reason.startswith(UNKNOWN_HEALTH)
    }
    return [
        Finding("probes", "FAIL", f"{why} (sandboxes that cannot be probed: {count})", fix)
        for cause, count in causes.items()
        for why, _, fix in [cause.partition(": ")]
    ]


async def _exec_probes(engine: DockerEngine, loaded: Loaded) -> list[Finding]:
    """Whether commands may be run in containers, where a probe needs it."""
    probes = [record.spec.health for record in loaded.records.values() if record.spec.health]
    if not any(probe.kind is ProbeKind.EXEC for probe in probes):
        return []
    try:
        # A container that does not exist: the answer is about the right alone.
        await engine.run_in(f"no-such-{secrets.token_hex(8)}", ["true"], _EXEC_LIMIT)
    except NotFound:
        return [Finding("exec probes", "OK", "commands may be run in containers")]
    except Forbidden as error:
        fix = "allow it in the proxy before the engine (POST=1, EXEC=1), or use http or tcp probes"
        return [Finding("exec probes", "FAIL", f"commands are forbidden: {error}", fix)]
    except EngineTimeout:
        raise
    except EngineError as error:
        return [Finding("exec probes", "WARN", str(error), "see that the engine allows exec")]
    return []


def _local_root(info: EngineInfo) -> Path | None:
    root = Path(info.root) if info.local and info.root else None
    return root if root is not None and root.exists() else None


async def _webhook(settings: Settings, engine: DockerEngine, loaded: Loaded) -> Finding:
    check = f"host from a sandbox, port {settings.host_port}"
    images = sorted({record.spec.image for record in loaded.records.values()})
    reached = await webhook_reach(settings, engine, images)
    if reached is None:
        return Finding(check, "SKIP", "no image of the desired file with a shell and nc is here")
    if reached:
        return Finding(check, "OK", "a container reaches host.docker.internal")
    mend = (
        f"let containers in: iptables -I INPUT -i docker0 -p tcp --dport {settings.host_port} "
        "-j ACCEPT, and have the server there listen on more than 127.0.0.1"
    )
    return Finding(check, "WARN", "a container does not reach host.docker.internal", mend)


def _nearest(path: Path) -> Path:
    """The path itself, or the folder above it that exists."""
    return next((p for p in (path, *path.parents) if p.exists()), path)
