"""What one container is made from, in the engine's neutral terms, and the hash that names it.

The hash covers what is baked into a container, and only where it differs from the default: a later
release with more fields hashes an old spec to the same value, so an upgrade recreates nothing. A
release that must hash differently adds a version beside the old one, and keeps the old one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from reconciler.core import naming

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.core.model import Desired, Identity
    from reconciler.core.spec import SandboxSpec

HASH_VERSION: Final = "1"
# What changes no container: how it is watched, and what happens around it.
_NOT_BAKED: Final = frozenset({"health", "restart", "on_change", "stop_timeout", "pull"})


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """What the settings and the database put into every container of this instance."""

    instance: str
    owner: str
    prefix: str
    publish_address: str
    webhook_url: str | None


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """One container, ready to be made. ``ports`` maps container ports to host ports.

    ``hostname`` is None where the engine chooses it.
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
    """The name of all that goes into a container: ``1:`` and 32 hex digits."""
    baked: dict[str, Any] = spec.model_dump(
        mode="json",
        exclude_defaults=True,
        exclude=set(_NOT_BAKED),
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
    """Whether a container's hash agrees. One of a version that we do not know is left as it is."""
    return made_from == desired or made_from.partition(":")[0] != HASH_VERSION


def labels(instance_config: InstanceConfig, sandbox: str, nonce: str) -> dict[str, str]:
    """The labels of an object that is made for the sandbox."""
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
    """What the sandbox sees: env file, then env, then what is ours. Ports are container ports."""
    spec = desired.spec
    webhook = (
        {naming.WEBHOOK_VARIABLE: instance_config.webhook_url}
        if instance_config.webhook_url
        else {}
    )
    ports = {port.name: str(port.container_port) for port in spec.ports}
    ours = {naming.SESSION_KEY_VARIABLE: identity.session_key}
    return {**webhook, **ports, **env_file, **spec.env, **ours}


def blueprint(
    desired: Desired,
    name: str,
    instance_config: InstanceConfig,
    env_file: Mapping[str, str],
    *,
    volume: str | None,
    nonce: str,
) -> ContainerConfig:
    """The container called ``name`` for a record whose hash and identity are known."""
    assert desired.identity is not None
    assert desired.spec_hash is not None
    spec = desired.spec
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
        hostname=_hostname(spec, desired.name),
    )


def _hostname(spec: SandboxSpec, sandbox: str) -> str | None:
    """The sandbox's name, so that it stays over replacements, where its network is its own."""
    if spec.hostname is not None:
        return spec.hostname
    mode = spec.network.mode
    return None if mode == "host" or mode.startswith("container:") else sandbox


def published(spec: SandboxSpec, identity: Identity) -> dict[int, int]:
    """Return the published container ports, and the host ports that are leased for them."""
    if spec.network.mode in {"host", "none"}:
        return {}
    inside = [port.container_port for port in spec.ports]
    return {port: identity.ports[port] for port in inside if port in identity.ports}


def is_leased(spec: SandboxSpec, identity: Identity | None) -> bool:
    """Whether the identity has a host port for each port that the spec names."""
    wanted = {port.container_port for port in spec.ports}
    return identity is not None and wanted <= identity.ports.keys()
