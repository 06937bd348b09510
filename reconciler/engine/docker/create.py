"""A blueprint as the body of Docker's create call. Pure.

Folders of the host are mounted by ``Mounts`` and not by ``Binds``: a source that is missing is then
an error, and not a new empty folder of root's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from reconciler.core import naming

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.core.container_config import ContainerConfig
    from reconciler.core.spec import LogSpec, MountSpec, ResourcesSpec, SandboxSpec, SecuritySpec

JSON_FILE: Final = "json-file"
_ROTATED: Final = frozenset({JSON_FILE, "local"})
_OWN_NAMES: Final = frozenset({"host", "none"})


def create_body(blueprint: ContainerConfig, engine_driver: str = JSON_FILE) -> dict[str, Any]:
    """Return all of the container, as JSON values; ``engine_driver`` is the engine's log driver."""
    spec = blueprint.spec
    body: dict[str, Any] = {
        "Image": spec.image,
        "Cmd": None if spec.command is None else list(spec.command),
        "Env": _environment(blueprint.env),
        "Labels": dict(blueprint.labels),
        "User": spec.user,
        "WorkingDir": spec.working_dir,
        "Hostname": blueprint.hostname,
        "Healthcheck": {"Test": ["NONE"]} if spec.healthcheck == "none" else None,
        "ExposedPorts": {f"{port}/tcp": {} for port in blueprint.ports},
        "StopTimeout": math.ceil(spec.stop_timeout),
        "HostConfig": _host_config(blueprint, engine_driver),
    }
    return _without_none(body)


def stand_in_body(image: str, path: str, stand_in: ContainerConfig) -> dict[str, Any]:
    """A container that is never started, and only gives access to a volume and an image.

    Its labels and its session key are set, since it would inherit those of the image.
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
    """A container's labels without those that are about the container's spec."""
    spec = {naming.LABEL_SPEC: "", naming.LABEL_SPEC_HASH: ""}
    return {**labels, **{key: spec[key] for key in labels.keys() & spec.keys()}}


def _environment(env: Mapping[str, str]) -> list[str]:
    """As Docker takes it: a name alone unsets what the image sets."""
    unset = {naming.WEBHOOK_VARIABLE} - env.keys()
    return [*(f"{name}={value}" for name, value in env.items()), *unset]


def _host_config(blueprint: ContainerConfig, engine_driver: str) -> dict[str, Any]:
    spec = blueprint.spec
    config: dict[str, Any] = {
        "Init": spec.init,
        "NetworkMode": spec.network.mode,
        "ExtraHosts": _extra_hosts(spec),
        "PortBindings": _port_bindings(blueprint),
        "Mounts": _mounts(blueprint),
        "RestartPolicy": {"Name": "no"},
        "LogConfig": _log(spec.log, engine_driver),
        **_resources(spec.resources),
        **_security(spec.security),
    }
    return _without_none(config)


def _extra_hosts(spec: SandboxSpec) -> list[str] | None:
    mode = spec.network.mode
    if mode in _OWN_NAMES or mode.startswith("container:"):
        return None
    return [f"{name}:{address}" for name, address in spec.network.extra_hosts.items()]


def _port_bindings(blueprint: ContainerConfig) -> dict[str, list[dict[str, str]]]:
    address = blueprint.publish_address
    return {
        f"{inner}/tcp": [{"HostIp": address, "HostPort": str(outer)}]
        for inner, outer in blueprint.ports.items()
    }


def _mounts(blueprint: ContainerConfig) -> list[dict[str, Any]]:
    workspace = blueprint.spec.workspace
    mounts = [_bind(mount) for mount in blueprint.spec.mounts]
    if blueprint.volume is None or workspace is None:
        return mounts
    volume = {
        "Type": "volume",
        "Source": blueprint.volume,
        "Target": workspace.path,
        # Docker makes a volume that is missing: it is then to be known as ours.
        "VolumeOptions": {"Labels": volume_labels(blueprint.labels)},
    }
    return [volume, *mounts]


def _bind(mount: MountSpec) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": mount.host_path,
        "Target": mount.container_path,
        "ReadOnly": mount.mode == "ro",
    }


def _log(log: LogSpec, engine_driver: str) -> dict[str, Any] | None:
    """Return the log's configuration; None leaves it to the host."""
    if log.driver is None and engine_driver != JSON_FILE and not log.options:
        return None
    driver = log.driver or engine_driver
    rotation = {"max-size": str(log.max_size), "max-file": str(log.max_files)}
    rotates = log.max_size and driver in (_ROTATED if log.driver else {JSON_FILE})
    return {"Type": driver, "Config": {**(rotation if rotates else {}), **log.options}}


def _resources(resources: ResourcesSpec) -> dict[str, Any]:
    return {
        "NanoCpus": None if resources.cpus is None else round(resources.cpus * 1e9),
        "Memory": resources.memory,
        "PidsLimit": resources.pids,
        "ShmSize": resources.shm,
        "Ulimits": [_ulimit(name, value) for name, value in resources.ulimits.items()] or None,
        "Devices": [_device(device) for device in resources.devices] or None,
        "DeviceRequests": _gpus(resources),
    }


def _ulimit(name: str, value: Any) -> dict[str, Any]:
    soft, hard = (value, value) if isinstance(value, int) else (value.soft, value.hard)
    return {"Name": name, "Soft": soft, "Hard": hard}


def _device(device: str) -> dict[str, str]:
    """``/dev/a``, ``/dev/a:/dev/b``, ``/dev/a:rw`` or ``/dev/a:/dev/b:rw``."""
    host, *rest = device.split(":")
    inside = rest.pop(0) if rest and rest[0].startswith("/") else host
    rights = rest[0] if rest else "rwm"
    return {"PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": rights}


def _gpus(resources: ResourcesSpec) -> list[dict[str, Any]] | None:
    gpus = resources.gpus
    if gpus is None:
        return None
    request: dict[str, Any] = {"Capabilities": [["gpu"]]}
    if isinstance(gpus, tuple):
        return [{**request, "DeviceIDs": list(gpus)}]
    return [{**request, "Count": -1 if gpus == "all" else gpus}]


def _security(security: SecuritySpec) -> dict[str, Any]:
    return {
        "CapAdd": list(security.cap_add) or None,
        "CapDrop": list(security.cap_drop) or None,
        "SecurityOpt": ["no-new-privileges"] if security.no_new_privileges else None,
        "ReadonlyRootfs": security.read_only,
        "Runtime": security.runtime,
    }


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
