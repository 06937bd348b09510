"""Limits as the body of Docker's update call. Pure.

Docker takes 0 for "as before". So a limit is taken away by the highest value that it accepts:
memory by all of the host's (20.10 refuses -1), cores by their number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.core.model import Limits

_DEFAULT_SHARES: Final = 1024


def update_body(wanted: Limits, seen: Limits, *, cores: int, host_memory: int) -> dict[str, Any]:
    """What differs, and memory together with swap, which Docker checks against each other."""
    body: dict[str, Any] = {}
    changed = set(seen.changed_to(wanted))
    if "restart_policy" in changed:
        body["RestartPolicy"] = {"Name": wanted.restart_policy}
    if "nano_cpus" in changed:
        body["NanoCpus"] = wanted.nano_cpus or cores * 10**9
    if "cpu_quota" in changed:
        body["CpuQuota"] = wanted.cpu_quota or -1
    if "cpu_shares" in changed:
        body["CpuShares"] = wanted.cpu_shares or _DEFAULT_SHARES
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


def expected(body: Mapping[str, Any], wanted: Limits) -> dict[str, int | str]:
    """The fields that were asked for, with the values that an inspection should show then."""
    found: dict[str, int | str] = {}
    for key, name in _NAMES.items():
        if key in body:
            found[name] = body[key] if key == "MemorySwap" else max(body[key], 0)
    if "CpusetCpus" in body:
        found["cpuset"] = body["CpusetCpus"]
    if "RestartPolicy" in body:
        found["restart_policy"] = wanted.restart_policy
    return found


_NAMES: Final = {
    "NanoCpus": "nano_cpus",
    "CpuQuota": "cpu_quota",
    "CpuShares": "cpu_shares",
    "Memory": "memory",
    "MemorySwap": "memory_swap",
    "MemoryReservation": "memory_reservation",
    "PidsLimit": "pids",
}
