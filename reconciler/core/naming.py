"""Every name and label that this project gives to an object of the engine.

Names are deterministic, so that a create whose answer was lost is found again and not repeated.
Neither a name nor a label proves alone that an object is ours: see loop/ownership.py.
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

# Every label is set on every object, so that none is inherited from an image.
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
    """The container of a sandbox: ``oh-agent-server-alice``."""
    return f"{prefix}{sandbox}"


def successor_name(prefix: str, sandbox: str) -> str:
    """The replacement of a sandbox's container, until it takes over."""
    return _transient(container_name(prefix, sandbox), sandbox, "next")


def predecessor_name(prefix: str, sandbox: str) -> str:
    """The container that a replacement took over from, until the replacement has started."""
    return _transient(container_name(prefix, sandbox), sandbox, "prev")


def stand_in_name(prefix: str, sandbox: str) -> str:
    """The container that gives access to a workspace for a moment, and is never started."""
    return _transient(container_name(prefix, sandbox), sandbox, "prep")


def made_names(container: str, sandbox: str) -> frozenset[str]:
    """Every name that is given to a container of the sandbox whose own one is ``container``."""
    roles = ("next", "prev", "prep")
    return frozenset({container, *(_transient(container, sandbox, role) for role in roles)})


def volume_name(prefix: str, sandbox: str) -> str:
    """The workspace of a sandbox: ``openhands-workspace-oh-agent-server-alice``."""
    return volume_of(container_name(prefix, sandbox))


def volume_of(container: str) -> str:
    """The workspace of the sandbox whose container has that name."""
    return f"openhands-workspace-{container}"


def marker_name(instance: str, owner: str) -> str:
    """The volume by which the daemon of one database is known to the others on an engine."""
    return f"{marker_prefix(instance)}{owner}"


def marker_prefix(instance: str) -> str:
    """The part that the marker volumes of one instance have in common."""
    return f"{MARKER_PREFIX}{instance}-"


def garbage_key(container: str) -> str:
    """The key of a container that bears our instance label but names no sandbox.

    A colon stands in no sandbox's name, so the key never meets a record.
    """
    return f"garbage:{container}"


def is_garbage(key: str) -> bool:
    """Whether the key is one of ``garbage_key``."""
    return ":" in key


def _transient(container: str, sandbox: str, role: str) -> str:
    # The digest makes the part after the prefix longer than any sandbox's name may be (63), so no
    # record can ever own a transient name, whatever it is called.
    digest = hashlib.sha256(sandbox.encode()).hexdigest()
    return f"{container}.{role}.{digest}"
