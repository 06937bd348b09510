"""Decode Docker's responses into this project's types. Pure.

A missing or wrong value raises any exception. Callers wrap these functions in
``errors.decode_errors``, which turns every exception into Unreadable. Numbers that are returned are
in range and texts can be encoded, even if the engine sends garbage.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final, TypeVar

from reconciler.core import naming
from reconciler.core.errors import Unreadable
from reconciler.core.observed import Check, CheckState, Container, Phase, ResourceLimits, Volume
from reconciler.engine.docker.errors import cut, decode_errors
from reconciler.engine.docker.stream import parse_json
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
    # Podman's name for destroy, up to 6.1 at least.
    "remove",
)
_ALIASES: Final = {"remove": "destroy"}
# Podman's states, which its Docker-compatible API shows in 5.4 and 4.3.
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
# Characters.
_LONGEST_TEXT: Final = 4096
_LAST_DATE: Final = datetime.max.replace(tzinfo=UTC).timestamp()
_INT32: Final = 2**31
_INT64: Final = 2**63
_PORTS_END: Final = 1 << 16
_ID: Final = re.compile(r"[\w.:-]{1,256}", re.ASCII)


def epoch(date: Any) -> float | None:
    """Parse one of the engine's dates to seconds since the epoch.

    None for Docker's date of what never happened, and for what is not a date: no decision depends
    on a date, so a broken one does not make the response unreadable.
    """
    try:
        read = datetime.fromisoformat(date)
    except (TypeError, ValueError):
        return None
    seconds = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    return seconds if 0 < seconds <= _LAST_DATE else None


def identifier(answer: Mapping[str, Any]) -> str:
    """Return the id of a container, an image or an exec."""
    value = text(answer["Id"])
    if not _ID.fullmatch(value):
        raise ValueError("not an id")
    return value


def whole(value: Any, low: int, end: int) -> int:
    """Return the value, if it is a whole number from ``low`` to below ``end``."""
    if type(value) is not int or not low <= value < end:
        raise ValueError("expected a whole number in range")
    return value


def exit_code(value: Any) -> int:
    """Return the value, if it is an exit code; Windows uses all 32 bits."""
    return whole(value, -_INT32, 2 * _INT32)


def rows(answer: Any, read: Callable[[Any], T]) -> tuple[tuple[T, ...], tuple[BrokenRow, ...]]:
    """Decode a list; return the good rows, and those that cannot be decoded."""
    if not isinstance(answer, list):
        raise TypeError("expected a list")
    good, broken = [], []
    for row in answer:
        try:
            with decode_errors("one row of a list"):
                good.append(read(row))
        except Unreadable as error:
            fields = row if isinstance(row, dict) else {}
            labels = fields.get("Labels")
            sandbox = labels.get(naming.LABEL_SANDBOX) if isinstance(labels, dict) else ""
            id_ = fields.get("Id", fields.get("Name"))
            try:
                broken.append(BrokenRow(text(id_), text(sandbox), str(error)))
            except (TypeError, ValueError):
                broken.append(BrokenRow("", "", str(error)))
    return tuple(good), tuple(broken)


def summary(row: Mapping[str, Any]) -> Summary:
    """Decode one row of a container list."""
    # Legacy links add extra names (/other/alias); keep only the top-level one.
    names = [text(name[1:]) for name in row["Names"] or () if name.count("/") == 1]
    name = names[0] if names else identifier(row)[:12]
    return Summary(
        id=identifier(row),
        name=name,
        sandbox=_sandbox(_labels(row), name),
        phase=_phase(row["State"]),
        owner=text(_labels(row).get(naming.LABEL_OWNER, "")),
    )


def volume_rows(answer: Mapping[str, Any]) -> list[Any]:
    """Return the rows of a volume list; ValueError if the list is partial."""
    if warnings := answer.get("Warnings"):
        raise ValueError(f"the list is partial: {cut(str(warnings))}")
    listed = answer["Volumes"]
    return [] if listed is None else listed


def volume(row: Mapping[str, Any]) -> Volume:
    """Decode a volume, listed or inspected, with any labels."""
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


# Network modes that nobody can disconnect; those with a colon join another container's, or a path.
_FIXED_NETWORKS: Final = frozenset({"", "none", "host", "private", "slirp4netns", "pasta"})


def container(answer: Mapping[str, Any], instance: str) -> Container | None:
    """Decode an inspected container; None if it belongs to another instance."""
    config, state, host = answer["Config"], answer["State"], answer["HostConfig"]
    labels = _labels(config)
    if labels.get(naming.LABEL_INSTANCE) != instance:
        return None
    name = text(answer["Name"]).removeprefix("/")
    mounted = {text(mount["Name"]) for mount in answer["Mounts"] or () if mount["Type"] == "volume"}
    timeout = config.get("StopTimeout")
    key = f"{naming.SESSION_KEY_VARIABLE}="
    keys = (text(item.removeprefix(key)) for item in config["Env"] or () if item.startswith(key))
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
        volumes=frozenset(name for name in mounted if not _ANONYMOUS.fullmatch(name)),
        image=text(config["Image"]),
        image_id=text(answer["Image"]),
        stop_timeout=_DEFAULT_STOP_TIMEOUT
        if timeout is None
        else float(whole(timeout, -_INT32, _INT32)),
        check=_check(state),
        session_key=next(keys, None),
        owner=text(labels.get(naming.LABEL_OWNER, "")),
        nonce=text(labels.get(naming.LABEL_NONCE, "")),
        base=text(labels.get(naming.LABEL_CONTAINER, "")),
        engine_restarts=_count(answer.get("RestartCount")),
        limits=_limits(host, answer.get("NetworkSettings") or {}),
    )


def _check(state: Mapping[str, Any]) -> Check | None:
    """Decode the HEALTHCHECK. Without one, Docker omits it or says none; Podman sends it empty."""
    health = state.get("Health") or {}
    status = health.get("Status")
    if status not in _CHECK_STATES:
        return None
    results = health.get("Log") or ()
    return Check(CheckState(status), text(results[-1]["End"]) if results else "")


def _limits(host: Mapping[str, Any], network: Mapping[str, Any]) -> ResourceLimits:
    policy = host.get("RestartPolicy") or {}
    name, tries = str(policy.get("Name") or "no")[:64], _count(policy.get("MaximumRetryCount"))
    return ResourceLimits(
        restart_policy=f"{name}:{tries}" if tries else name,
        nano_cpus=_limit(host.get("NanoCpus")),
        cpu_quota=_limit(host.get("CpuQuota")),
        cpu_shares=_limit(host.get("CpuShares")),
        cpuset=str(host.get("CpusetCpus") or "")[:256],
        memory=_limit(host.get("Memory")),
        memory_swap=-1 if host.get("MemorySwap") == -1 else _limit(host.get("MemorySwap")),
        memory_reservation=_limit(host.get("MemoryReservation")),
        pids=_limit(host.get("PidsLimit")),
        network=_network(str(host.get("NetworkMode") or "")[:256], network.get("Networks") or {}),
    )


def _network(mode: str, connected: Mapping[str, Any]) -> str:
    """The network that the container asks for, where it is connected to any that can be left."""
    joins_other = mode in _FIXED_NETWORKS or ":" in mode
    return "" if joins_other or not connected else {"default": "bridge"}.get(mode, mode)


def _limit(value: Any) -> int:
    """Return a limit; 0 for each way in which the engine says that there is none."""
    return value if isinstance(value, int) and 0 < value < _INT64 else 0


def _count(value: Any) -> int:
    """Return a number that is only shown and compared; 0 if the engine sends none."""
    return value if isinstance(value, int) and 0 <= value < _INT32 else 0


def is_asked_for(answer: Mapping[str, Any], asked: str) -> bool:
    """Return whether the container has this id or name: Docker also finds one by an id's prefix."""
    return asked in {identifier(answer), text(answer["Name"]).removeprefix("/")}


def image(row: Mapping[str, Any]) -> Image:
    """Decode one row of an image list. Docker counts an image's containers only on request."""
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
    """Decode the responses to ``version`` and ``info``; each is None if it is forbidden."""
    components = str(version.get("Components", "")) if version is not None else ""
    options = (about.get("SecurityOptions") or ()) if about is not None else ()
    return EngineInfo(
        name="Podman" if "Podman" in components else "Docker",
        version=text(version["Version"]) if version is not None else "of unknown version",
        api_version=text(version["ApiVersion"]) if version is not None else api_version,
        root=text(about["DockerRootDir"]) if about is not None else "",
        rootless="name=rootless" in options,
        missing_limits=tuple(
            limit for key, limit in _LIMITS.items() if (about or {}).get(key) is False
        ),
        local=local,
    )


def log_driver(info: Mapping[str, Any]) -> str:
    """Return the engine's default log driver; empty if it names none."""
    return text(info.get("LoggingDriver") or "")


def index_server(info: Mapping[str, Any]) -> str:
    """Return the address of the engine's default registry; empty if it names none."""
    return text(info.get("IndexServerAddress") or "")


def gateway(network: Mapping[str, Any]) -> str:
    """Return the engine's address on an inspected network; empty if it has none.

    Before its first restart, Docker 20.10 names only the subnet; its address is then the first.
    """
    for pool in network["IPAM"]["Config"] or ():
        if pool.get("Gateway"):
            return text(pool["Gateway"])
        if pool.get("Subnet"):
            return str(ip_network(text(pool["Subnet"]))[1])
    return ""


def warnings(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the warnings in the response to a create."""
    return tuple(cut(text(each)) for each in answer.get("Warnings") or ())


def event(line: bytes, instance: str) -> EngineEvent | None:
    """Decode one line of the event stream; None if it is not about this instance or unreadable.

    A hint that cannot be read only delays what the next list shows.
    """
    try:
        with decode_errors("an event"):
            data = parse_json(line)
            kind, actor = EventKind(data["Type"]), data["Actor"]
            if kind is EventKind.CONTAINER:
                labels, id_ = actor["Attributes"], text(actor["ID"])
                if (labels or {}).get(naming.LABEL_INSTANCE) != instance:
                    return None
                sandbox = _sandbox(labels, text(labels.get("name", "")))
            else:
                # Podman leaves the id of a volume's event empty and names it in the attributes.
                id_, sandbox = text(actor["ID"] or actor["Attributes"]["name"]), ""
                # A volume's events carry no labels, so only its name shows the instance.
                if not id_.startswith((WORKSPACE_PREFIX, naming.marker_prefix(instance))):
                    return None
            action = text(data["Action"]).partition(":")[0]
            return EngineEvent(
                kind=kind,
                id=id_,
                what=_ALIASES.get(action, action),
                sandbox=sandbox,
                at=whole(data["timeNano"], 0, _INT64) / 1e9,
            )
    except Unreadable:
        return None


def _names(references: Any) -> tuple[str, ...]:
    return tuple(text(each) for each in references or () if not each.startswith(_NAMELESS))


def _phase(state: str) -> Phase:
    return _PHASES.get(state) or Phase(state)


def _labels(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    labels = answer["Labels"]
    return {} if labels is None else dict(labels)


def _sandbox(labels: Mapping[str, Any], name: str) -> str:
    return text(labels.get(naming.LABEL_SANDBOX) or naming.garbage_key(name))


def _ports(bindings: Mapping[str, Any]) -> dict[int, int]:
    """Return the fixed TCP ports, from container to host."""
    ports = {}
    for key, published in bindings.items():
        number, _, protocol = key.partition("/")
        host = published[0].get("HostPort", "") if published else ""
        if protocol in {"", "tcp"} and host.isdigit() and int(host):
            ports[whole(int(number), 1, _PORTS_END)] = whole(int(host), 1, _PORTS_END)
    return ports


def text(value: Any) -> str:
    """Return the value, if it is an encodable text of at most 4096 characters."""
    if not isinstance(value, str):
        raise TypeError("expected a text")
    if len(value) > _LONGEST_TEXT:
        raise ValueError("the text is too long")
    # JSON can hold half of a surrogate pair, which cannot be encoded.
    value.encode()
    return value
