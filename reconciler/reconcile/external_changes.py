"""Detect external changes, once each: a pause, new limits, a removed workspace."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler.core.drift import baseline_of
from reconciler.core.observed import Phase
from reconciler.core.restart import Loss, Pause
from reconciler.core.spec import DesiredState
from reconciler.telemetry import events

if TYPE_CHECKING:
    from reconciler.core.restart import SandboxMemory
    from reconciler.core.snapshot import Snapshot
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder


class ExternalChanges:
    """Records external changes in the memory of each key, and reports them."""

    def __init__(self, *, store: Store, recorder: Recorder) -> None:
        self._store = store
        self._recorder = recorder

    def note(self, snapshot: Snapshot) -> bool:
        """Update the memory from the observed state; return whether it changed."""
        if snapshot.desired is None:
            return False
        former = self._store.memory(snapshot.key)
        memory = self._note_pause(snapshot, former)
        wanted, edit = snapshot.wanted_volume, snapshot.desired.spec_hash
        if memory.loss is not None and edit not in {None, memory.loss.spec_hash}:
            memory = replace(memory, loss=None)
        if wanted is None or snapshot.has_volume(wanted):
            memory = replace(memory, workspace=wanted or "")
        elif memory.workspace:
            self._recorder.tell(
                events.VolumeLost(
                    sandbox=snapshot.key,
                    cause="someone else removed it, for instance `docker volume prune`",
                    volume=memory.workspace,
                )
            )
            memory = replace(memory, workspace="", loss=Loss(memory.workspace, edit))
        current, known = snapshot.roles.current, memory.baseline
        if current is not None:
            baseline = known if known and known.container_id == current.id else None
            baseline = baseline or baseline_of(snapshot.desired, current)
            if not baseline.limits.network:
                connected = replace(baseline.limits, network=current.limits.network)
                baseline = replace(baseline, limits=connected)
            drifted = current.limits if current.limits != baseline.limits else None
            if drifted is not None and drifted != baseline.reported:
                for field, (old, new) in baseline.limits.changed_to(drifted).items():
                    self._recorder.tell(
                        events.SandboxDrifted(
                            sandbox=snapshot.key,
                            cause="someone else changed it, for instance with `docker update`",
                            container=current.name,
                            field=field,
                            old=old,
                            new=new,
                        )
                    )
            memory = replace(memory, baseline=replace(baseline, reported=drifted))
        self._store.put_memory(snapshot.key, memory)
        return memory != former

    def _note_pause(self, snapshot: Snapshot, memory: SandboxMemory) -> SandboxMemory:
        current, known = snapshot.roles.current, memory.pause
        wanted = snapshot.desired is not None and snapshot.desired.state is DesiredState.PAUSED
        if current is None or current.phase is not Phase.PAUSED:
            # Our pause may still be in progress while it is desired.
            if known is None or (known.ours and wanted and current is not None):
                return memory
            if not known.ours and current is not None and current.id == known.container_id:
                self._recorder.tell(
                    events.SandboxResumed(
                        sandbox=snapshot.key,
                        cause="someone else paused it, and resumed it",
                        container=current.name,
                    )
                )
            return replace(memory, pause=None)
        if known and known.container_id == current.id and (known.ours or not wanted):
            return memory
        if not wanted:
            self._recorder.tell(
                events.SandboxPausedByOthers(
                    sandbox=snapshot.key,
                    cause="its desired state is running",
                    container=current.name,
                    resume_in=snapshot.pause_grace,
                )
            )
        return replace(memory, pause=Pause(current.id, ours=wanted, since=snapshot.now))
