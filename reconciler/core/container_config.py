"""The configuration of one container, independent of the engine, and its hash.

The hash covers the settings that are fixed when a container is created, and only those that differ
from their default. So a release with more fields hashes an old spec to the same value, and an
upgrade recreates nothing. A release that must hash differently adds a version and keeps the old
one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from reconciler.core import naming

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.core.snapshot import Desired, Identity
    from reconciler.core.spec import SandboxSpec

HASH_VERSION: Final = "1"
# Fields that a container is not created from.
_NOT_HASHED: Final = frozenset({"health", "restart", "on_change", "stop_timeout", "pull"})


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """The part of every container that comes from the settings and the database."""

    instance: str
    owner: str
    prefix: str
    publish_address: str
    webhook_url: str | None


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """One container to create. ``ports`` maps container ports to host ports.

    ``hostname`` None: the engine chooses it.
    """

    name: str
    labels: Mapping[str, str]
    spec: SandboxSpec
    env: Mapping[str, str] = field(repr=False)
    ports: Mapping[int, int]
    publish_address: str
    volume: str | None
    hostname: str | None = None


def spec_hash(
    spec: SandboxSpec, instance_config: InstanceConfig, env_file_digest: str | None
) -> str:
    """Return the hash of everything a container is created from: ``1:`` and 32 hex digits."""
    baked: dict[str, Any] = spec.model_dump(
        mode="json",
        exclude_defaults=True,
        exclude=set(_NOT_HASHED),
    )
    if "workspace" in baked:
        baked["workspace"].pop("retain", None)
    baked["ports"] = [[port.name, port.container_port] for port in spec.ports]
    baked["around"] = [
        instance_config.publish_address,
        instance_config.webhook_url,
        env_file_digest,
    ]
    text = json.dumps(baked, sort_keys=True, separators=(",", ":"))
    return f"{HASH_VERSION}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def same_spec(made_from: str, desired: str) -> bool:
    """Whether the hashes agree. A hash of an unknown version agrees with every other."""
    return made_from == desired or made_from.partition(":")[0] != HASH_VERSION


def labels(instance_config: InstanceConfig, sandbox: str, nonce: str) -> dict[str, str]:
    """Return the labels of an object created for the sandbox."""
    return {
        **dict.fromkeys(naming.LABELS, ""),
        naming.LABEL_INSTANCE: instance_config.instance,
        naming.LABEL_OWNER: instance_config.owner,
        naming.LABEL_SANDBOX: sandbox,
        naming.LABEL_CONTAINER: naming.container_name(instance_config.prefix, sandbox),
        naming.LABEL_NONCE: nonce,
    }


def environment(
    desired: Desired,
    identity: Identity,
    instance_config: InstanceConfig,
    env_file: Mapping[str, str],
) -> dict[str, str]:
    """Return the environment: env file, env, then our variables. Ports are container ports."""
    spec = desired.spec
    webhook = (
        {naming.WEBHOOK_VARIABLE: instance_config.webhook_url}
        if instance_config.webhook_url
        else {}
    )
    ports = {port.name: str(port.container_port) for port in spec.ports}
    ours = {naming.SESSION_KEY_VARIABLE: identity.session_key}
    return {**webhook, **ports, **env_file, **spec.env, **ours}


def container_config(
    desired: Desired,
    name: str,
    instance_config: InstanceConfig,
    env_file: Mapping[str, str],
    *,
    volume: str | None,
    nonce: str,
) -> ContainerConfig:
    """Return the container called ``name``. The record's hash and identity must be known."""
    assert desired.identity is not None
    assert desired.spec_hash is not None
    spec, mode = desired.spec, desired.spec.network.mode
    # The sandbox's name as host name survives a replacement; a shared network has its own.
    shared = mode == "host" or mode.startswith("container:")
    return ContainerConfig(
        name=name,
        labels={
            **labels(instance_config, desired.name, nonce),
            naming.LABEL_SPEC: desired.spec_name,
            naming.LABEL_SPEC_HASH: desired.spec_hash,
        },
        spec=spec,
        env=environment(desired, desired.identity, instance_config, env_file),
        ports=published(spec, desired.identity),
        publish_address=instance_config.publish_address,
        volume=volume,
        hostname=spec.hostname or (None if shared else desired.name),
    )


def published(spec: SandboxSpec, identity: Identity) -> dict[int, int]:
    """Return the published container ports, mapped to their leased host ports."""
    if spec.network.mode in {"host", "none"}:
        return {}
    inside = [port.container_port for port in spec.ports]
    return {port: identity.ports[port] for port in inside if port in identity.ports}


def is_leased(spec: SandboxSpec, identity: Identity | None) -> bool:
    """Whether every port of the spec has a leased host port."""
    wanted = {port.container_port for port in spec.ports}
    return identity is not None and wanted <= identity.ports.keys()
