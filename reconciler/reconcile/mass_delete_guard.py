"""Mass-delete guard for orphans: too many at once are removed only after a user confirms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.core.mass_delete import mass_delete_guard_engages
from reconciler.telemetry import events

if TYPE_CHECKING:
    from reconciler.store.store import Store
    from reconciler.store.tables import Orphan
    from reconciler.telemetry.recorder import Recorder

HINT: Final = "reconciler gc --allow-mass-delete"
_MOST_NAMES: Final = 20


class MassDeleteGuard:
    """Decides which orphans need confirmation. ``count`` and ``percent`` are as for an edit.

    The orphans of an accepted edit are confirmed from the start. Those of a lost database always
    need confirmation, since it is unknown whether they were wanted.
    """

    def __init__(self, store: Store, *, recorder: Recorder, count: int, percent: float) -> None:
        self._store = store
        self._recorder = recorder
        self._count = count
        self._percent = percent
        self._reported: tuple[str, ...] = ()

    def holds(self, orphan: Orphan) -> bool:
        """Whether the orphan needs confirmation before it is removed."""
        return not orphan.confirmed and (orphan.lost or self._engaged)

    @property
    def held(self) -> tuple[str, ...]:
        """The sandboxes with orphans that wait for confirmation."""
        orphans = (o for kind in self._store.orphans.values() for o in kind.values())
        return tuple(sorted({orphan.sandbox for orphan in orphans if self.holds(orphan)}))

    @property
    def summary(self) -> str:
        """How many are held and how to confirm them; empty if none are."""
        held = len(self.held)
        if not held:
            return ""
        of = f"{held} of {self._total} sandboxes"
        return f"the mass-delete guard holds back orphans of {of}; confirm with `{HINT}`"

    def confirm(self) -> None:
        """Confirm the removal of all present orphans; their grace still applies."""
        self._store.confirm_orphans()

    def report(self) -> None:
        """Log the held sandboxes once each time they change."""
        held = self.held
        if held == self._reported:
            return
        if held:
            self._recorder.log(
                events.GcHeld(
                    deletions=len(held),
                    of=self._total,
                    names=list(held[:_MOST_NAMES]),
                    hint=f"confirm with: {HINT}",
                )
            )
        else:
            self._recorder.log(events.GcReleased(deletions=len(self._reported)))
        self._reported = held

    @property
    def _engaged(self) -> bool:
        return mass_delete_guard_engages(
            self._total, len(self._store.unconfirmed), count=self._count, percent=self._percent
        )

    @property
    def _total(self) -> int:
        return len(self._store.records) + len(self._store.unconfirmed)
