"""Docker's answers as this project's nouns. Pure; what is missing or odd raises a plain error.

Callers wrap these in ``docker_errors.understood``: what cannot be understood is no answer.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from reconciler.core import naming
from reconciler.core.model import Container, Phase, Volume
from reconciler.engine.docker_errors import cut
from reconciler.engine.protocol import EngineEvent, EngineInfo, EventKind, Image, Summary

if TYPE_CHECKING:
    from collections.abc import Mapping

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
WORKSPACE_PREFIX: Final = naming.volume_name("", "")
_NEVER: Final = "0001-01-01"
_NAMELESS: Final = "<none>"
_ANONYMOUS: Final = re.compile(r"[0-9a-f]{64}")
_DEFAULT_STOP_TIMEOUT: Final = 10.0


def epoch(text: str) -> float | None:
    """Seconds since the epoch of one of Docker's dates; None for its date of what never was."""
    return None if text.startswith(_NEVER) else datetime.fromisoformat(text).timestamp()


def summary(row: Mapping[str, Any]) -> Summary:
    """One row of a container list."""
    name = _listed_name(row)
    return Summary(
        id=_text(row["Id"]),
        name=name,
        sandbox=_sandbox(row["Labels"], name),
        phase=_phase(row["State"]),
    )


def volumes(answer: Mapping[str, Any]) -> tuple[Volume, ...]:
    """A volume list, where it is whole."""
    if warnings := answer.get("Warnings"):
        raise ValueError(f"the list is partial: {cut(str(warnings))}")
    return tuple(map(_volume, answer["Volumes"] or ()))


def volume(answer: Mapping[str, Any], instance: str) -> Volume | None:
    """An inspected volume; None where it is not of this instance."""
    return _volume(answer) if is_ours(answer["Labels"], instance) else None


def container(answer: Mapping[str, Any], instance: str) -> Container | None:
    """An inspected container; None where it is not of this instance."""
    config, state, host = answer["Config"], answer["State"], answer["HostConfig"]
    labels = config["Labels"] or {}
    if labels.get(naming.LABEL_INSTANCE) != instance:
        return None
    name = _text(answer["Name"]).removeprefix("/")
    created = epoch(answer["Created"])
    return Container(
        id=_text(answer["Id"]),
        name=name,
        sandbox=_sandbox(labels, name),
        spec=labels.get(naming.LABEL_SPEC, ""),
        spec_hash=labels.get(naming.LABEL_SPEC_HASH, ""),
        phase=_phase(state["Status"]),
        created_at=created or 0.0,
        started_at=epoch(state["StartedAt"]),
        finished_at=epoch(state["FinishedAt"]),
        exit_code=int(state["ExitCode"]),
        oom_killed=bool(state.get("OOMKilled")),
        error=cut(state.get("Error") or ""),
        ports=_ports(host["PortBindings"] or {}),
        volumes=_named_volumes(answer["Mounts"] or ()),
        image=config["Image"],
        image_id=answer["Image"],
        stop_timeout=_stop_timeout(config),
        session_key=_variable(config["Env"] or (), naming.SESSION_KEY_VARIABLE),
    )


def is_asked_for(answer: Mapping[str, Any], asked: str) -> bool:
    """Docker also finds a container by the beginning of its id, which a name may happen to be."""
    return asked in {answer["Id"], _text(answer["Name"]).removeprefix("/")}


def is_ours(labels: Mapping[str, str] | None, instance: str) -> bool:
    """The labels say that the object is of this instance."""
    return (labels or {}).get(naming.LABEL_INSTANCE) == instance


def image(row: Mapping[str, Any]) -> Image:
    """One row of an image list. Docker counts an image's containers only where it is asked to."""
    tags = _names(row["RepoTags"])
    return Image(
        id=_text(row["Id"]),
        references=tags or _names(row.get("RepoDigests")),
        size=int(row["Size"]),
        in_use=int(row.get("Containers", -1)) > 0,
    )


def info(version: Mapping[str, Any], info: Mapping[str, Any], *, local: bool = False) -> EngineInfo:
    """Who the engine is, from its two answers about itself."""
    components = str(version.get("Components", ""))
    return EngineInfo(
        name="Podman" if "Podman" in components else "Docker",
        version=_text(version["Version"]),
        api_version=_text(version["ApiVersion"]),
        root=_text(info["DockerRootDir"]),
        rootless="name=rootless" in (info.get("SecurityOptions") or ()),
        local=local,
    )


def event(line: bytes, instance: str) -> EngineEvent | None:
    """One line of the event stream; None where it is about nothing of ours, or cut off."""
    try:
        data = json.loads(line)
        kind = EventKind(data["Type"])
        decode = _container_event if kind is EventKind.CONTAINER else _volume_event
        return decode(data, instance)
    except (AttributeError, KeyError, TypeError, ValueError):
        # A hint that cannot be read costs time until the next list, and nothing else.
        return None


def _container_event(data: Mapping[str, Any], instance: str) -> EngineEvent | None:
    labels = data["Actor"]["Attributes"]
    if not is_ours(labels, instance):
        return None
    sandbox = _sandbox(labels, labels.get("name", ""))
    return _event(data, EventKind.CONTAINER, sandbox)


def _volume_event(data: Mapping[str, Any], _instance: str) -> EngineEvent | None:
    # A volume's events carry no labels: its name is all there is to go by.
    ours = _volume_name(data).startswith(WORKSPACE_PREFIX)
    return _event(data, EventKind.VOLUME, "") if ours else None


def _volume_name(data: Mapping[str, Any]) -> str:
    # Podman leaves the id of a volume's event empty and names it among the attributes.
    actor = data["Actor"]
    return _text(actor["ID"] or actor["Attributes"]["name"])


def _event(data: Mapping[str, Any], kind: EventKind, sandbox: str) -> EngineEvent:
    return EngineEvent(
        kind=kind,
        id=data["Actor"]["ID"] if kind is EventKind.CONTAINER else _volume_name(data),
        what=_SAME.get(data["Action"], data["Action"]),
        sandbox=sandbox,
        at=data["timeNano"] / 1e9,
    )


def _volume(row: Mapping[str, Any]) -> Volume:
    labels = row["Labels"] or {}
    created = row.get("CreatedAt")
    return Volume(
        name=_text(row["Name"]),
        sandbox=labels.get(naming.LABEL_SANDBOX) or naming.garbage_key(row["Name"]),
        created_at=(epoch(created) if created else None) or 0.0,
        retain=labels.get(naming.LABEL_RETAIN, ""),
    )


def _names(references: Any) -> tuple[str, ...]:
    return tuple(_text(each) for each in references or () if not each.startswith(_NAMELESS))


def _phase(state: str) -> Phase:
    return _PHASES.get(state) or Phase(state)


def _listed_name(row: Mapping[str, Any]) -> str:
    # A container that is linked to has a name of its own and one below each that links to it.
    own = [name[1:] for name in row["Names"] or () if name.count("/") == 1]
    return own[0] if own else _text(row["Id"])[:12]


def _sandbox(labels: Mapping[str, str], name: str) -> str:
    return labels.get(naming.LABEL_SANDBOX) or naming.garbage_key(name)


def _ports(bindings: Mapping[str, Any]) -> dict[int, int]:
    """Fixed TCP ports: container to host."""
    ports = {}
    for key, published in bindings.items():
        number, _, protocol = key.partition("/")
        host = published[0].get("HostPort", "") if published else ""
        if protocol in {"", "tcp"} and host.isdigit() and int(host):
            ports[int(number)] = int(host)
    return ports


def _named_volumes(mounts: Any) -> frozenset[str]:
    names = {mount["Name"] for mount in mounts if mount["Type"] == "volume"}
    return frozenset(name for name in names if not _ANONYMOUS.fullmatch(name))


def _stop_timeout(config: Mapping[str, Any]) -> float:
    timeout = config.get("StopTimeout")
    return _DEFAULT_STOP_TIMEOUT if timeout is None else float(timeout)


def _variable(env: Any, name: str) -> str | None:
    values = (item.partition("=")[2] for item in env if item.startswith(f"{name}="))
    return next(values, None)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text was expected")
    return value
