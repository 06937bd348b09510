"""What is told to users of the present state: plain data, the same for the socket and the CLI."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from reconciler.core.decide import decide
from reconciler.core.faults import RECORD, faults_of
from reconciler.core.model import Fate
from reconciler.core.naming import container_name
from reconciler.core.plan import plan
from reconciler.core.replacement import names_of, roles_of
from reconciler.core.status import is_at_goal, status_of
from reconciler.core.steps import latest_failure
from reconciler.core.units import iso

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from reconciler.core.model import Action, Container, Death, Snapshot
    from reconciler.observe.snapshots import SnapshotBuilder
    from reconciler.reconcile.orphans import Garbage, OrphanTracker
    from reconciler.settings import Settings
    from reconciler.store.store import Store

_HOPELESS: Final = 3


class Survey:
    """Answers questions about all keys, or one."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        snapshots: SnapshotBuilder,
        collector: OrphanTracker,
        held_names: Callable[[], set[str]],
    ) -> None:
        self._settings = settings
        self._store = store
        self._snapshots = snapshots
        self._collector = collector
        self._held_names = held_names

    def names(self) -> list[str]:
        """Return the sandboxes that are declared, being deleted, or held back."""
        return sorted({*self._store.records, *self._store.deleted, *self._held_names()})

    def sandboxes(self, name: str | None = None, *, secrets: bool = False) -> list[dict[str, Any]]:
        """One object a sandbox, by name; ``name`` may be a container's name, too."""
        prefix = self._settings.container_name_prefix
        wanted = [key for key in self.names() if name in {None, key, container_name(prefix, key)}]
        return [self._sandbox(self._snapshots.snapshot(key), secrets=secrets) for key in wanted]

    def _sandbox(self, snapshot: Snapshot, *, secrets: bool) -> dict[str, Any]:
        status, reason = status_of(snapshot)
        current = roles_of(snapshot).current
        record = self._store.records.get(snapshot.key)
        since = current.created_at if current else (record.created_at if record else None)
        row: dict[str, Any] = {
            "id": names_of(snapshot).current,
            "name": snapshot.key,
            "spec": record.spec_name if record else None,
            "image": record.spec.image if record else None,
            "desired": _desired(snapshot),
            "status": str(status),
            "reason": reason,
            "next": decide(snapshot).waiting_for,
            "exposed_urls": self._urls(snapshot),
            "created_at": iso(since),
            "started_at": iso(current.started_at if current else None),
            "container_id": current.id if current else None,
            "restarts": snapshot.memory.restarts,
            "volumes": _volumes(snapshot),
            "last_exit": self._death(snapshot.memory.death),
        }
        if secrets:
            row["session_api_key"] = _key(snapshot, current)
        return row

    def _death(self, death: Death | None) -> dict[str, Any] | None:
        if death is None:
            return None
        return {
            "at": iso(death.finished_at or self._store.clock.date(death.seen_at)),
            "reason": death.reason,
            "exit_code": death.exit_code,
            "oom_killed": death.oom_killed,
            "log_tail": list(death.log_tail),
        }

    def _urls(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """The URLs of a sandbox that is live. On the port of another, anybody may listen."""
        desired, current = snapshot.desired, roles_of(snapshot).current
        if current is None or not current.live:
            return []
        if desired is None or desired.identity is None or desired.spec.network.mode == "none":
            return []
        on_host = desired.spec.network.mode == "host"
        urls = []
        for port in desired.spec.ports:
            inside = port.container_port
            number = inside if on_host else desired.identity.ports.get(inside)
            if number is None:
                continue
            url = self._settings.container_url_pattern.format(port=number)
            urls.append({"name": port.name, "url": url, "port": number})
        return urls

    def plan(self) -> dict[str, Any]:
        """Return what would be done now: ``changes`` by sandbox, each with its ordered actions.

        A sandbox for which nothing can be done now, though it is not as desired, is among them with
        what it waits for.
        """
        snapshots = [
            self._snapshots.snapshot(key) for key in {*self._snapshots.keys(), *self._held_names()}
        ]
        changes = []
        for snapshot in sorted(snapshots, key=lambda snapshot: snapshot.key):
            planned = plan(snapshot)
            waiting_for = planned.waiting_for or "; ".join(faults_of(snapshot).values())
            if planned.actions or (waiting_for and _is_ours(snapshot)):
                actions = [_action(action) for action in planned.actions]
                changes.append(
                    {"sandbox": snapshot.key, "actions": actions, "waiting_for": waiting_for}
                )
        return {"in_sync": not changes, "changes": changes}

    def garbage(self, keys: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return what nothing asks for, of these keys or of all, and when it goes."""
        wanted = self._snapshots.keys() if keys is None else keys
        snapshots = [self._snapshots.snapshot(key) for key in sorted(wanted)]
        return [
            self._garbage(one, snapshot.now)
            for snapshot in snapshots
            for one in self._collector.report(snapshot)
        ]

    def _garbage(self, one: Garbage, now: float) -> dict[str, Any]:
        date, remove_at = self._store.clock.date, one.remove_at
        row = asdict(one)
        row["since"] = iso(date(one.since))
        row["remove_at"] = None if remove_at is None else iso(date(remove_at))
        row["due"] = remove_at is not None and remove_at <= now
        return row

    def outcome(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of ``garbage`` with what became of each that was due.

        ``removed``: it is gone. ``error``: why it is not; None where it is, or was not due.
        """
        keys = {row["sandbox"] for row in rows if row["due"]}
        left = {(row["kind"], row["name"]) for row in self.garbage(keys)}
        found = []
        for row in rows:
            remains = (row["kind"], row["name"]) in left
            error = self._why_left(row["sandbox"]) if row["due"] and remains else None
            found.append({**row, "removed": row["due"] and not remains, "error": error})
        return found

    def _why_left(self, key: str) -> str:
        return self.stuck(key) or "the engine is not done with it: ask again"

    def stuck(self, key: str) -> str:
        """Return why what is to be removed under the key cannot be; empty where it can."""
        snapshot = self._snapshots.snapshot(key)
        failure = latest_failure(snapshot)
        return failure.cause if failure else snapshot.unseen or decide(snapshot).waiting_for

    def convergence(self) -> dict[str, Any]:
        """Whether the host agrees with the records. ``hopeless``: what is left keeps failing."""
        snapshots = [self._snapshots.snapshot(key) for key in self.names()]
        left = [snapshot for snapshot in snapshots if not _is_converged(snapshot)]
        return {
            "converged": not left,
            "total": len(snapshots),
            "pending": [snapshot.key for snapshot in left],
            "hopeless": bool(left) and all(_is_hopeless(snapshot) for snapshot in left),
        }


def _desired(snapshot: Snapshot) -> str:
    if snapshot.desired is not None:
        return str(snapshot.desired.state)
    return "deleted" if snapshot.fate is Fate.DELETED else "held"


def _is_ours(snapshot: Snapshot) -> bool:
    """Whether it is a sandbox; what belongs to none waits for its grace, which ``gc`` shows."""
    return snapshot.desired is not None or snapshot.fate is Fate.DELETED or bool(snapshot.held)


def _is_converged(snapshot: Snapshot) -> bool:
    if faults_of(snapshot):
        return False
    if snapshot.desired is None:
        return not snapshot.observed.containers and snapshot.fate is not Fate.DELETED
    settled = decide(snapshot)
    return is_at_goal(snapshot) and settled.action is None and not settled.waiting_for


def _is_hopeless(snapshot: Snapshot) -> bool:
    failure = latest_failure(snapshot)
    tries = max(failure.count if failure else 0, snapshot.memory.streak)
    problem = snapshot.desired is not None and snapshot.desired.problem is not None
    return problem or RECORD in faults_of(snapshot) or tries >= _HOPELESS


def _volumes(snapshot: Snapshot) -> list[str]:
    return sorted({volume.name for volume in snapshot.observed.volumes})


def _key(snapshot: Snapshot, current: Container | None) -> str | None:
    if snapshot.desired is not None and snapshot.desired.identity is not None:
        return snapshot.desired.identity.session_key
    return current.session_key if current else None


def _action(action: Action) -> dict[str, Any]:
    return {
        "verb": str(action.verb),
        "target": action.target,
        "new_name": action.new_name,
        "cause": action.cause,
    }
