"""Docker's answers as this project's nouns. Pure; a missing or wrong value raises any exception.

Callers wrap these in ``docker_errors.understood``, which turns every exception into Unreadable.
What is returned is in range and can be encoded, whatever the engine sent.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final, TypeVar

from reconciler.core import naming
from reconciler.core.errors import Unreadable
from reconciler.core.model import Check, CheckState, Container, Limits, Phase, Volume
from reconciler.engine.docker.bounded_json import decode
from reconciler.engine.docker.errors import cut, understood
from reconciler.engine.protocol import (
    BrokenRow,
    EngineEvent,
    EngineInfo,
    EventKind,
    Image,
    Summary,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

CONTAINER_EVENTS: Final = (
    "create",
    "start",
    "restart",
    "die",
    "stop",
    "oom",
    "pause",
    "unpause",
    "rename",
    # The engine adds the new state: "health_status: healthy".
    "health_status",
    "update",
    "destroy",
    # Podman's name for the same, up to 6.1 at least.
    "remove",
)
_SAME: Final = {"remove": "destroy"}
# Podman's own states, where its answers to Docker's clients show them (5.4 and 4.3 do).
_PHASES: Final = {
    "configured": Phase.CREATED,
    "initialized": Phase.CREATED,
    "stopped": Phase.EXITED,
    "stopping": Phase.RUNNING,
}
WORKSPACE_PREFIX: Final = naming.volume_of("")
_CHECK_STATES: Final = frozenset(state.value for state in CheckState)
_NAMELESS: Final = "<none>"
_ANONYMOUS: Final = re.compile(r"[0-9a-f]{64}")
_DEFAULT_STOP_TIMEOUT: Final = 10.0
_LIMITS: Final = {"CpuCfsQuota": "cpus", "MemoryLimit": "memory", "PidsLimit": "pids"}
_LONGEST_TEXT: Final = 4096
_LAST_DATE: Final = datetime.max.replace(tzinfo=UTC).timestamp()
_INT32: Final = 2**31
_INT64: Final = 2**63
_PORTS_END: Final = 1 << 16
_ID: Final = re.compile(r"[\w.:-]{1,256}", re.ASCII)


def epoch(date: Any) -> float | None:
    """Seconds since the epoch of one of the engine's dates; None where there is none.

    That is Docker's date of what never happened, and anything that is not a date: nothing is
    decided by a date, so a broken one makes no answer unreadable.
    """
    try:
        read = datetime.fromisoformat(date)
    except (TypeError, ValueError):
        return None
    seconds = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    return seconds if 0 < seconds <= _LAST_DATE else None


def identifier(answer: Mapping[str, Any]) -> str:
    """The id of a container, an image or a command."""
    value = text(answer["Id"])
    if not _ID.fullmatch(value):
        raise ValueError("an id that is none")
    return value


def whole(value: Any, low: int, end: int) -> int:
    """A whole number from ``low`` to below ``end``."""
    if type(value) is not int or not low <= value < end:
        raise ValueError("a whole number in range was expected")
    return value


def exit_code(value: Any) -> int:
    """How a container or a command ended; Windows uses all of 32 bits."""
    return whole(value, -_INT32, 2 * _INT32)


def rows(answer: Any, read: Callable[[Any], T]) -> tuple[tuple[T, ...], tuple[BrokenRow, ...]]:
    """What a list holds, and those of its rows that cannot be read."""
    if not isinstance(answer, list):
        raise TypeError("a list was expected")
    good, broken = [], []
    for row in answer:
        try:
            with understood("one row of a list"):
                good.append(read(row))
        except Unreadable as error:
            broken.append(_broken(row, error))
    return tuple(good), tuple(broken)


def _broken(row: Any, error: Unreadable) -> BrokenRow:
    fields = row if isinstance(row, dict) else {}
    labels = fields.get("Labels")
    sandbox = labels.get(naming.LABEL_SANDBOX) if isinstance(labels, dict) else ""
    try:
        return BrokenRow(text(fields.get("Id", fields.get("Name"))), text(sandbox), str(error))
    except (TypeError, ValueError):
        return BrokenRow("", "", str(error))


def summary(row: Mapping[str, Any]) -> Summary:
    """One row of a container list."""
    name = _listed_name(row)
    return Summary(
        id=identifier(row),
        name=name,
        sandbox=_sandbox(_labels(row), name),
        phase=_phase(row["State"]),
        owner=text(_labels(row).get(naming.LABEL_OWNER, "")),
    )


def volume_rows(answer: Mapping[str, Any]) -> list[Any]:
    """The rows of a volume list, where it is whole."""
    if warnings := answer.get("Warnings"):
        raise ValueError(f"the list is partial: {cut(str(warnings))}")
    listed = answer["Volumes"]
    return [] if listed is None else listed


def volume(row: Mapping[str, Any]) -> Volume:
    """A volume, listed or inspected, whatever labels it has."""
    labels, name = _labels(row), text(row["Name"])
    return Volume(
        name=name,
        sandbox=_sandbox(labels, name),
        retain=text(labels.get(naming.LABEL_RETAIN, "")),
        instance=text(labels.get(naming.LABEL_INSTANCE, "")),
        owner=text(labels.get(naming.LABEL_OWNER, "")),
        nonce=text(labels.get(naming.LABEL_NONCE, "")),
        base=text(labels.get(naming.LABEL_CONTAINER, "")),
    )


def container(answer: Mapping[str, Any], instance: str) -> Container | None:
    """An inspected container; None where it is not of this instance."""
    config, state, host = answer["Config"], answer["State"], answer["HostConfig"]
    labels = _labels(config)
    if labels.get(naming.LABEL_INSTANCE) != instance:
        return None
    name = text(answer["Name"]).removeprefix("/")
    return Container(
        id=identifier(answer),
        name=name,
        sandbox=_sandbox(labels, name),
        spec=text(labels.get(naming.LABEL_SPEC, "")),
        spec_hash=text(labels.get(naming.LABEL_SPEC_HASH, "")),
        phase=_phase(state["Status"]),
        created_at=epoch(answer.get("Created")) or 0.0,
        started_at=epoch(state.get("StartedAt")),
        finished_at=epoch(state.get("FinishedAt")),
        exit_code=exit_code(state["ExitCode"]),
        oom_killed=bool(state.get("OOMKilled")),
        error=cut(state.get("Error") or ""),
        ports=_ports(host["PortBindings"] or {}),
        volumes=_named_volumes(answer["Mounts"] or ()),
        image=text(config["Image"]),
        image_id=text(answer["Image"]),
        stop_timeout=_stop_timeout(config),
        check=_check(state),
        session_key=_variable(config["Env"] or (), naming.SESSION_KEY_VARIABLE),
        owner=text(labels.get(naming.LABEL_OWNER, "")),
        nonce=text(labels.get(naming.LABEL_NONCE, "")),
        base=text(labels.get(naming.LABEL_CONTAINER, "")),
        engine_restarts=_count(answer.get("RestartCount")),
        limits=_limits(host),
    )


def _check(state: Mapping[str, Any]) -> Check | None:
    """The HEALTHCHECK; Docker leaves it out or calls it none where there is none, Podman empty."""
    health = state.get("Health") or {}
    status = health.get("Status")
    if status not in _CHECK_STATES:
        return None
    results = health.get("Log") or ()
    return Check(CheckState(status), text(results[-1]["End"]) if results else "")


def _limits(host: Mapping[str, Any]) -> Limits:
    policy = host.get("RestartPolicy") or {}
    name, tries = str(policy.get("Name") or "no")[:64], _count(policy.get("MaximumRetryCount"))
    return Limits(
        restart_policy=f"{name}:{tries}" if tries else name,
        nano_cpus=_limit(host.get("NanoCpus")),
        cpu_quota=_limit(host.get("CpuQuota")),
        cpu_shares=_limit(host.get("CpuShares")),
        cpuset=str(host.get("CpusetCpus") or "")[:256],
        memory=_limit(host.get("Memory")),
        memory_swap=-1 if host.get("MemorySwap") == -1 else _limit(host.get("MemorySwap")),
        memory_reservation=_limit(host.get("MemoryReservation")),
        pids=_limit(host.get("PidsLimit")),
    )


def _limit(value: Any) -> int:
    """A limit; 0 for none, however the engine says that."""
    return value if isinstance(value, int) and 0 < value < _INT64 else 0


def _count(value: Any) -> int:
    """A number that is only shown and compared; 0 where the engine gives none."""
    return value if isinstance(value, int) and 0 <= value < _INT32 else 0


def is_asked_for(answer: Mapping[str, Any], asked: str) -> bool:
    """Docker also finds a container by the beginning of its id, which a name may happen to be."""
    return asked in {identifier(answer), text(answer["Name"]).removeprefix("/")}


def is_ours(labels: Mapping[str, str] | None, instance: str) -> bool:
    """The labels say that the object is of this instance."""
    return (labels or {}).get(naming.LABEL_INSTANCE) == instance


def image(row: Mapping[str, Any]) -> Image:
    """One row of an image list. Docker counts an image's containers only where it is asked to."""
    tags = _names(row["RepoTags"])
    return Image(
        id=identifier(row),
        references=tags or _names(row.get("RepoDigests")),
        size=whole(row["Size"], 0, _INT64),
        in_use=whole(row.get("Containers", -1), -1, _INT64) > 0,
    )


def info(
    version: Mapping[str, Any] | None,
    about: Mapping[str, Any] | None,
    *,
    api_version: str,
    local: bool = False,
) -> EngineInfo:
    """Who the engine is, from its two answers about itself; None where one is forbidden."""
    components = str(version.get("Components", "")) if version is not None else ""
    options = (about.get("SecurityOptions") or ()) if about is not None else ()
    return EngineInfo(
        name="Podman" if "Podman" in components else "Docker",
        version=text(version["Version"]) if version is not None else "of unknown version",
        api_version=text(version["ApiVersion"]) if version is not None else api_version,
        root=text(about["DockerRootDir"]) if about is not None else "",
        rootless="name=rootless" in options,
        missing_limits=_missing_limits(about or {}),
        local=local,
    )


def log_driver(info: Mapping[str, Any]) -> str:
    """Return the engine's own log driver; empty where it names none."""
    return text(info.get("LoggingDriver") or "")


def index_server(info: Mapping[str, Any]) -> str:
    """The address of the engine's default registry; empty where it names none."""
    return text(info.get("IndexServerAddress") or "")


def gateway(network: Mapping[str, Any]) -> str:
    """The engine's own address on an inspected network; empty where it has none.

    Before its first restart, Docker 20.10 names only the subnet: its address is then the first.
    """
    for pool in network["IPAM"]["Config"] or ():
        if pool.get("Gateway"):
            return text(pool["Gateway"])
        if pool.get("Subnet"):
            return str(ip_network(text(pool["Subnet"]))[1])
    return ""


def warnings(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """What the engine warns of in its answer to a create."""
    return tuple(cut(text(each)) for each in answer.get("Warnings") or ())


def _missing_limits(about: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(limit for key, limit in _LIMITS.items() if about.get(key) is False)


def event(line: bytes, instance: str) -> EngineEvent | None:
    """One line of the event stream; None where it is about nothing of ours, or cannot be read.

    A hint that cannot be read costs time until the next list, and nothing else.
    """
    try:
        with understood("an event"):
            data = decode(line)
            kind = EventKind(data["Type"])
            read = _container_event if kind is EventKind.CONTAINER else _volume_event
            return read(data, instance)
    except Unreadable:
        return None


def _container_event(data: Mapping[str, Any], instance: str) -> EngineEvent | None:
    labels = data["Actor"]["Attributes"]
    if not is_ours(labels, instance):
        return None
    sandbox = _sandbox(labels, text(labels.get("name", "")))
    return _event(data, EventKind.CONTAINER, sandbox)


def _volume_event(data: Mapping[str, Any], instance: str) -> EngineEvent | None:
    # A volume's events carry no labels: its name is all there is to go by.
    known = (WORKSPACE_PREFIX, naming.marker_prefix(instance))
    ours = _volume_name(data).startswith(known)
    return _event(data, EventKind.VOLUME, "") if ours else None


def _volume_name(data: Mapping[str, Any]) -> str:
    # Podman leaves the id of a volume's event empty and names it among the attributes.
    actor = data["Actor"]
    return text(actor["ID"] or actor["Attributes"]["name"])


def _event(data: Mapping[str, Any], kind: EventKind, sandbox: str) -> EngineEvent:
    action = text(data["Action"]).partition(":")[0]
    return EngineEvent(
        kind=kind,
        id=text(data["Actor"]["ID"]) if kind is EventKind.CONTAINER else _volume_name(data),
        what=_SAME.get(action, action),
        sandbox=sandbox,
        at=whole(data["timeNano"], 0, _INT64) / 1e9,
    )


def _names(references: Any) -> tuple[str, ...]:
    return tuple(text(each) for each in references or () if not each.startswith(_NAMELESS))


def _phase(state: str) -> Phase:
    return _PHASES.get(state) or Phase(state)


def _listed_name(row: Mapping[str, Any]) -> str:
    # A container that is linked to has a name of its own and one below each that links to it.
    own = [text(name[1:]) for name in row["Names"] or () if name.count("/") == 1]
    return own[0] if own else identifier(row)[:12]


def _labels(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    labels = answer["Labels"]
    return {} if labels is None else dict(labels)


def _sandbox(labels: Mapping[str, Any], name: str) -> str:
    return text(labels.get(naming.LABEL_SANDBOX) or naming.garbage_key(name))


def _ports(bindings: Mapping[str, Any]) -> dict[int, int]:
    """Fixed TCP ports: container to host."""
    ports = {}
    for key, published in bindings.items():
        number, _, protocol = key.partition("/")
        host = published[0].get("HostPort", "") if published else ""
        if protocol in {"", "tcp"} and host.isdigit() and int(host):
            ports[whole(int(number), 1, _PORTS_END)] = whole(int(host), 1, _PORTS_END)
    return ports


def _named_volumes(mounts: Any) -> frozenset[str]:
    names = {text(mount["Name"]) for mount in mounts if mount["Type"] == "volume"}
    return frozenset(name for name in names if not _ANONYMOUS.fullmatch(name))


def _stop_timeout(config: Mapping[str, Any]) -> float:
    timeout = config.get("StopTimeout")
    return _DEFAULT_STOP_TIMEOUT if timeout is None else float(whole(timeout, -_INT32, _INT32))


def _variable(env: Any, name: str) -> str | None:
    values = (text(item.partition("=")[2]) for item in env if item.startswith(f"{name}="))
    return next(values, None)


def text(value: Any) -> str:
    """A text of at most 4096 characters, all of which can be encoded."""
    if not isinstance(value, str):
        raise TypeError("text was expected")
    if len(value) > _LONGEST_TEXT:
        raise ValueError("a text that is too long")
    # Half of a surrogate pair can be decoded from JSON and be written nowhere.
    value.encode()
    return value
