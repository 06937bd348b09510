"""What keeps a sandbox from its desired state, by source.

The log, the ledger and ``status`` all take their faults from here, so that they say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.core.decide import decide
from reconciler.core.model import AWAITED, Fate, Verb
from reconciler.core.steps import relevant_failures

if TYPE_CHECKING:
    from reconciler.core.model import Snapshot

RECORD: Final = "record"
ENV_FILE: Final = "env_file"
PORTS: Final = "ports"
DISK: Final = "disk"
INSPECT: Final = "inspect"
STEPS: Final = frozenset(map(str, Verb))

# Why a fault of each source was found, and why it is over. A step is over once the sandbox is as
# desired.
BEGUN: Final = {
    RECORD: "its record is invalid; what was declared before stays in force",
    ENV_FILE: "its env_file cannot be used",
    PORTS: "it has no host port",
    DISK: "a disk is too full to make it",
    INSPECT: "its containers cannot be inspected",
}
OVER: Final = {
    RECORD: "nothing is wrong with its record",
    ENV_FILE: "nothing is wrong with its env_file",
    PORTS: "it has its host ports",
    DISK: "no disk is too full to make it",
    INSPECT: "its containers can be inspected",
}


def faults_of(snapshot: Snapshot) -> dict[str, str]:
    """Return what is wrong now, by source: one of the constants here, or the verb of a step."""
    found = {INSPECT: snapshot.unseen, RECORD: snapshot.held}
    desired = snapshot.desired
    if desired is not None and desired.problem:
        found[ENV_FILE if desired.spec_hash is None else PORTS] = desired.problem
    if snapshot.hold and decide(snapshot).waiting_for == snapshot.hold:
        found[DISK] = snapshot.hold
    if desired is not None or snapshot.fate is Fate.DELETED:
        found |= {str(failure.verb): failure.cause for failure in relevant_failures(snapshot)}
    return {source: error for source, error in found.items() if error and error not in AWAITED}
