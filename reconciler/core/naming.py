"""The names and labels of engine objects.

Names are deterministic, so that a create with a lost response is found and not repeated. Neither a
name nor a label alone proves that an object is ours: see observe/ownership.py.
"""

from __future__ import annotations

import hashlib
from typing import Final

NAME_PATTERN: Final = r"^[a-z0-9A-Z][a-z0-9A-Z_.-]{0,62}$"

LABEL: Final = "io.sandbox-reconciler."
LABEL_INSTANCE: Final = LABEL + "instance"
LABEL_OWNER: Final = LABEL + "owner"
LABEL_SANDBOX: Final = LABEL + "sandbox"
LABEL_CONTAINER: Final = LABEL + "container"
LABEL_NONCE: Final = LABEL + "nonce"
LABEL_SPEC: Final = LABEL + "spec"
LABEL_SPEC_HASH: Final = LABEL + "spec-hash"
LABEL_RETAIN: Final = LABEL + "retain"

# Every object gets every label, so that none is inherited from an image.
LABELS: Final = (
    LABEL_INSTANCE,
    LABEL_OWNER,
    LABEL_SANDBOX,
    LABEL_CONTAINER,
    LABEL_NONCE,
    LABEL_SPEC,
    LABEL_SPEC_HASH,
    LABEL_RETAIN,
)

MARKER_PREFIX: Final = "reconciler-owner-"
SESSION_KEY_VARIABLE: Final = "OH_SESSION_API_KEYS_0"
WEBHOOK_VARIABLE: Final = "OH_WEBHOOKS_0_BASE_URL"


def container_name(prefix: str, sandbox: str) -> str:
    """Return the name of a sandbox's container, such as ``oh-agent-server-alice``."""
    return f"{prefix}{sandbox}"


def successor_name(prefix: str, sandbox: str) -> str:
    """Return the name of a replacement until it takes over."""
    return _transient(container_name(prefix, sandbox), sandbox, "next")


def predecessor_name(prefix: str, sandbox: str) -> str:
    """Return the name of a replaced container until its replacement has started."""
    return _transient(container_name(prefix, sandbox), sandbox, "prev")


def stand_in_name(prefix: str, sandbox: str) -> str:
    """Return the name of a container that only gives access to a workspace; never started."""
    return _transient(container_name(prefix, sandbox), sandbox, "prep")


def made_names(container: str, sandbox: str) -> frozenset[str]:
    """Return every name that a container of the sandbox may get, from its regular name."""
    roles = ("next", "prev", "prep")
    return frozenset({container, *(_transient(container, sandbox, role) for role in roles)})


def volume_name(prefix: str, sandbox: str) -> str:
    """Return a workspace volume's name: ``openhands-workspace-oh-agent-server-alice``."""
    return volume_of(container_name(prefix, sandbox))


def volume_of(container: str) -> str:
    """Return the workspace volume's name for a container's name."""
    return f"openhands-workspace-{container}"


def marker_name(instance: str, owner: str) -> str:
    """Return the name of the volume that tells other daemons on the engine of this database."""
    return f"{marker_prefix(instance)}{owner}"


def marker_prefix(instance: str) -> str:
    """Return the common prefix of an instance's marker volumes."""
    return f"{MARKER_PREFIX}{instance}-"


def garbage_key(container: str) -> str:
    """Return the key for a container with our instance label and no sandbox label.

    A sandbox's name has no colon, so the key never matches a record.
    """
    return f"garbage:{container}"


def is_garbage(key: str) -> bool:
    """Whether the key comes from ``garbage_key``."""
    return ":" in key


def _transient(container: str, sandbox: str, role: str) -> str:
    # With the digest, the part after the prefix is longer than a sandbox's name may be (63), so no
    # record can have a transient name.
    digest = hashlib.sha256(sandbox.encode()).hexdigest()
    return f"{container}.{role}.{digest}"
