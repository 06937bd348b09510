"""Turn snapshots into JSON-ready rows: the entries of ``status``, ``plan`` and ``convergence``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from reconciler.core.action import Source
from reconciler.core.decide import decide
from reconciler.core.failures import latest_failure
from reconciler.core.plan import plan
from reconciler.core.status import faults_of, is_at_goal, status_of
from reconciler.core.units import iso

if TYPE_CHECKING:
    from reconciler.core.snapshot import Snapshot
    from reconciler.settings import Settings
    from reconciler.store.store import Store

# Failed attempts or restarts in a row after which `apply` stops waiting for a sandbox.
_HOPELESS: Final = 3
_HOPELESS_SOURCES: Final = (Source.INSTANCE, Source.ENV_FILE, Source.PORTS, Source.RECORD)


def sandbox_row(
    snapshot: Snapshot, *, store: Store, settings: Settings, secrets: bool
) -> dict[str, Any]:
    """Return one entry of ``status``; with ``secrets``, it has the session key."""
    status, reason = status_of(snapshot)
    current, desired, memory = snapshot.roles.current, snapshot.desired, snapshot.memory
    record = store.records.get(snapshot.key)
    since = current.created_at if current else (record.created_at if record else None)
    last_exit = None
    if (death := memory.death) is not None:
        last_exit = {
            "at": iso(death.finished_at or store.clock.date(death.seen_at)),
            "reason": death.reason,
            "exit_code": death.exit_code,
            "oom_killed": death.oom_killed,
            "log_tail": list(death.log_tail),
        }
    absent = "deleted" if snapshot.deleted else "held"
    row = {
        "id": snapshot.names.current,
        "name": snapshot.key,
        "spec": record.spec_name if record else None,
        "image": record.spec.image if record else None,
        "desired": str(desired.state) if desired else absent,
        "status": str(status),
        "reason": reason,
        "next": decide(snapshot).waiting_for,
        "exposed_urls": exposed_urls(snapshot, settings.container_url_pattern),
        "created_at": iso(since),
        "started_at": iso(current.started_at if current else None),
        "container_id": current.id if current else None,
        "restarts": memory.restarts,
        "volumes": sorted({volume.name for volume in snapshot.observed.volumes}),
        "last_exit": last_exit,
    }
    if secrets:
        if desired is not None and desired.identity is not None:
            row["session_api_key"] = desired.identity.session_key
        else:
            row["session_api_key"] = current.session_key if current else None
    return row


def exposed_urls(snapshot: Snapshot, pattern: str) -> list[dict[str, Any]]:
    """Return the URLs of a live sandbox.

    A sandbox that is not live has none: another program may listen on its ports.
    """
    desired, current = snapshot.desired, snapshot.roles.current
    if current is None or not current.live:
        return []
    if desired is None or desired.identity is None or desired.spec.network.mode == "none":
        return []
    on_host = desired.spec.network.mode == "host"
    urls = []
    for port in desired.spec.ports:
        inside = port.container_port
        number = inside if on_host else desired.identity.ports.get(inside)
        if number is not None:
            url = pattern.format(port=number)
            urls.append({"name": port.name, "url": url, "port": number})
    return urls


def change_row(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return one entry of ``plan``: the ordered actions, or what the sandbox waits for.

    None if there is nothing to do, or if the key has only orphans, which ``gc`` lists.
    """
    planned = plan(snapshot)
    waiting_for = planned.waiting_for or "; ".join(faults_of(snapshot).values())
    is_sandbox = (
        snapshot.desired is not None or snapshot.deleted or bool(snapshot.reason(Source.RECORD))
    )
    if not planned.actions and not (waiting_for and is_sandbox):
        return None
    actions = [
        {
            "verb": str(action.verb),
            "target": action.target,
            "new_name": action.new_name,
            "cause": action.cause,
        }
        for action in planned.actions
    ]
    return {"sandbox": snapshot.key, "actions": actions, "waiting_for": waiting_for}


def is_converged(snapshot: Snapshot) -> bool:
    """Whether the sandbox is as desired, and nothing is left to do or to wait for."""
    if faults_of(snapshot):
        return False
    if snapshot.desired is None:
        return not snapshot.observed.containers and not snapshot.deleted
    decision = decide(snapshot)
    return is_at_goal(snapshot) and decision.action is None and not decision.waiting_for


def is_hopeless(snapshot: Snapshot) -> bool:
    """Whether waiting is useless: the record is invalid, or the sandbox keeps failing."""
    failure = latest_failure(snapshot)
    attempts = max(failure.count if failure else 0, snapshot.memory.streak)
    return bool(snapshot.reason(*_HOPELESS_SOURCES)) or attempts >= _HOPELESS


def why_not_removed(snapshot: Snapshot) -> str:
    """Return what blocks the removal of the key's garbage; empty if nothing does."""
    failure = latest_failure(snapshot)
    if failure is not None:
        return failure.cause
    return snapshot.reason(Source.INSPECT) or decide(snapshot).waiting_for
