"""Build the bodies of Docker's create and update calls. Pure.

Host folders are mounted with ``Mounts``, not with ``Binds``: a missing source is then an error
instead of a new empty folder that belongs to root.

An update treats 0 as "unchanged". So a limit is removed by setting the highest accepted value:
memory to the host's (20.10 refuses -1), cores to their number.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from reconciler.core import naming

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.core.container_config import ContainerConfig
    from reconciler.core.observed import ResourceLimits
    from reconciler.core.spec import LogSpec

JSON_FILE: Final = "json-file"
_ROTATED: Final = frozenset({JSON_FILE, "local"})
# Network modes that take no extra hosts; neither does "container:NAME".
_WITHOUT_HOSTS: Final = frozenset({"host", "none"})
_DEFAULT_CPU_SHARES: Final = 1024


def create_body(config: ContainerConfig, engine_driver: str = JSON_FILE) -> dict[str, Any]:
    """Return the body of a create call; ``engine_driver`` is the engine's default log driver."""
    spec, resources, security = config.spec, config.spec.resources, config.spec.security
    mode = spec.network.mode
    takes_hosts = mode not in _WITHOUT_HOSTS and not mode.startswith("container:")
    mounts: list[dict[str, Any]] = [
        {
            "Type": "bind",
            "Source": mount.host_path,
            "Target": mount.container_path,
            "ReadOnly": mount.mode == "ro",
        }
        for mount in spec.mounts
    ]
    if config.volume is not None and spec.workspace is not None:
        volume = {
            "Type": "volume",
            "Source": config.volume,
            "Target": spec.workspace.path,
            # Docker creates a missing volume; the labels mark it as ours.
            "VolumeOptions": {"Labels": volume_labels(config.labels)},
        }
        mounts.insert(0, volume)
    gpus = resources.gpus
    selection: dict[str, Any] = (
        {"DeviceIDs": list(gpus)}
        if isinstance(gpus, tuple)
        else {"Count": -1 if gpus == "all" else gpus}
    )
    host_config = {
        "Init": spec.init,
        "NetworkMode": mode,
        "ExtraHosts": [f"{name}:{at}" for name, at in spec.network.extra_hosts.items()]
        if takes_hosts
        else None,
        "PortBindings": {
            f"{inner}/tcp": [{"HostIp": config.publish_address, "HostPort": str(outer)}]
            for inner, outer in config.ports.items()
        },
        "Mounts": mounts,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": _log_config(spec.log, engine_driver),
        "NanoCpus": None if resources.cpus is None else round(resources.cpus * 1e9),
        "Memory": resources.memory,
        "PidsLimit": resources.pids,
        "ShmSize": resources.shm,
        "Ulimits": [
            {"Name": name, "Soft": limit, "Hard": limit}
            if isinstance(limit, int)
            else {"Name": name, "Soft": limit.soft, "Hard": limit.hard}
            for name, limit in resources.ulimits.items()
        ]
        or None,
        "Devices": [_device(device) for device in resources.devices] or None,
        "DeviceRequests": None if gpus is None else [{"Capabilities": [["gpu"]], **selection}],
        "CapAdd": list(security.cap_add) or None,
        "CapDrop": list(security.cap_drop) or None,
        "SecurityOpt": ["no-new-privileges"] if security.no_new_privileges else None,
        "ReadonlyRootfs": security.read_only,
        "Runtime": security.runtime,
    }
    # A name without a value unsets a variable of the image.
    unset = {naming.WEBHOOK_VARIABLE} - config.env.keys()
    body: dict[str, Any] = {
        "Image": spec.image,
        "Cmd": None if spec.command is None else list(spec.command),
        "Env": [*(f"{name}={value}" for name, value in config.env.items()), *unset],
        "Labels": dict(config.labels),
        "User": spec.user,
        "WorkingDir": spec.working_dir,
        "Hostname": config.hostname,
        "Healthcheck": {"Test": ["NONE"]} if spec.healthcheck == "none" else None,
        "ExposedPorts": {f"{port}/tcp": {} for port in config.ports},
        "StopTimeout": math.ceil(spec.stop_timeout),
        "HostConfig": _without_none(host_config),
    }
    return _without_none(body)


def stand_in_body(image: str, path: str, stand_in: ContainerConfig) -> dict[str, Any]:
    """Return the body for a container that only gives access to a volume and is never started.

    Labels and session key are set, because the container would inherit them from the image.
    """
    return {
        "Image": image,
        "Cmd": ["-"],
        "Env": [f"{naming.SESSION_KEY_VARIABLE}=", naming.WEBHOOK_VARIABLE],
        "Labels": {**stand_in.labels, naming.LABEL_SPEC: "", naming.LABEL_SPEC_HASH: ""},
        "HostConfig": {
            "NetworkMode": "none",
            "Mounts": [{"Type": "volume", "Source": stand_in.volume, "Target": path}],
        },
    }


def volume_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return a container's labels with those about its spec emptied."""
    spec = {naming.LABEL_SPEC: "", naming.LABEL_SPEC_HASH: ""}
    return {**labels, **{key: spec[key] for key in labels.keys() & spec.keys()}}


def update_body(
    wanted: ResourceLimits, current: ResourceLimits, *, cores: int, host_memory: int
) -> dict[str, Any]:
    """Return what differs; memory always with swap, because Docker checks them together."""
    body: dict[str, Any] = {}
    changed = set(current.changed_to(wanted))
    if "restart_policy" in changed:
        body["RestartPolicy"] = {"Name": wanted.restart_policy}
    if "nano_cpus" in changed:
        body["NanoCpus"] = wanted.nano_cpus or cores * 10**9
    if "cpu_quota" in changed:
        body["CpuQuota"] = wanted.cpu_quota or -1
    if "cpu_shares" in changed:
        body["CpuShares"] = wanted.cpu_shares or _DEFAULT_CPU_SHARES
    if "cpuset" in changed:
        body["CpusetCpus"] = wanted.cpuset or f"0-{cores - 1}"
    if changed & {"memory", "memory_swap"}:
        body["Memory"] = wanted.memory or host_memory
        body["MemorySwap"] = wanted.memory_swap or -1
    if "memory_reservation" in changed:
        body["MemoryReservation"] = wanted.memory_reservation or -1
    if "pids" in changed:
        body["PidsLimit"] = wanted.pids or -1
    return body


def limits_after(body: Mapping[str, Any], wanted: ResourceLimits) -> dict[str, Any]:
    """Return the fields of ``ResourceLimits`` that an inspection should show after the update."""
    expected: dict[str, int | str] = {}
    for key, name in _LIMIT_NAMES.items():
        if key in body:
            expected[name] = body[key] if key == "MemorySwap" else max(body[key], 0)
    if "CpusetCpus" in body:
        expected["cpuset"] = body["CpusetCpus"]
    if "RestartPolicy" in body:
        expected["restart_policy"] = wanted.restart_policy
    return expected


_LIMIT_NAMES: Final = {
    "NanoCpus": "nano_cpus",
    "CpuQuota": "cpu_quota",
    "CpuShares": "cpu_shares",
    "Memory": "memory",
    "MemorySwap": "memory_swap",
    "MemoryReservation": "memory_reservation",
    "PidsLimit": "pids",
}


def _log_config(log: LogSpec, engine_driver: str) -> dict[str, Any] | None:
    """Return the log's configuration; None leaves it to the engine."""
    if log.driver is None and engine_driver != JSON_FILE and not log.options:
        return None
    driver = log.driver or engine_driver
    rotation = {"max-size": str(log.max_size), "max-file": str(log.max_files)}
    rotates = log.max_size and driver in (_ROTATED if log.driver else {JSON_FILE})
    return {"Type": driver, "Config": {**(rotation if rotates else {}), **log.options}}


def _device(device: str) -> dict[str, str]:
    """Parse ``/dev/a``, ``/dev/a:/dev/b``, ``/dev/a:rw`` or ``/dev/a:/dev/b:rw``."""
    host, *rest = device.split(":")
    inside = rest.pop(0) if rest and rest[0].startswith("/") else host
    rights = rest[0] if rest else "rwm"
    return {"PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": rights}


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
