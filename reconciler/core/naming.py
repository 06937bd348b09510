"""Every name and label that this project gives to an object of the engine.

Ownership is the instance label, never a name. Names are deterministic, so that a create that
succeeded but was never heard of is found again instead of repeated.
"""

from __future__ import annotations

import hashlib
from typing import Final

NAME_PATTERN: Final = r"^[a-z0-9A-Z][a-z0-9A-Z_.-]{0,62}$"

LABEL: Final = "io.sandbox-reconciler."
LABEL_INSTANCE: Final = LABEL + "instance"
LABEL_SANDBOX: Final = LABEL + "sandbox"
LABEL_SPEC: Final = LABEL + "spec"
LABEL_SPEC_HASH: Final = LABEL + "spec-hash"
LABEL_RETAIN: Final = LABEL + "retain"

_DOCTOR: Final = "doctor-"
SESSION_KEY_VARIABLE: Final = "OH_SESSION_API_KEYS_0"
WEBHOOK_VARIABLE: Final = "OH_WEBHOOKS_0_BASE_URL"


def container_name(prefix: str, sandbox: str) -> str:
    """The container of a sandbox: ``oh-agent-server-alice``."""
    return f"{prefix}{sandbox}"


def successor_name(prefix: str, sandbox: str) -> str:
    """The replacement of a sandbox's container, until it takes over."""
    return _transient(prefix, sandbox, "next")


def predecessor_name(prefix: str, sandbox: str) -> str:
    """The container that a replacement took over from, until the replacement has started."""
    return _transient(prefix, sandbox, "prev")


def volume_name(prefix: str, sandbox: str) -> str:
    """The workspace of a sandbox: ``openhands-workspace-oh-agent-server-alice``."""
    return f"openhands-workspace-{container_name(prefix, sandbox)}"


def garbage_key(container: str) -> str:
    """The key of a container that bears our instance label but names no sandbox.

    A colon stands in no sandbox's name, so the key never meets a record.
    """
    return f"garbage:{container}"


def doctor_key(token: str) -> str:
    """Return the key of a container that ``doctor`` makes, and removes within seconds."""
    return garbage_key(f"{_DOCTOR}{token}")


def is_doctors(key: str) -> bool:
    """Whether a container of that key was made by ``doctor``."""
    return key.startswith(garbage_key(_DOCTOR))


def _transient(prefix: str, sandbox: str, role: str) -> str:
    # The digest makes the part after the prefix longer than any sandbox's name may be (63), so no
    # record can ever own a transient name, whatever it is called.
    digest = hashlib.sha256(sandbox.encode()).hexdigest()
    return f"{prefix}{sandbox}.{role}.{digest}"
