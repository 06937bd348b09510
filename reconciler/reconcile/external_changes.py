"""What others do to a sandbox, noticed once: they pause it, and take its workspace away."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler.core.limits import baseline_of
from reconciler.core.model import Loss, Pause, Phase
from reconciler.core.replacement import has_volume, roles_of, wanted_volume
from reconciler.core.spec import DesiredState
from reconciler.telemetry import events

if TYPE_CHECKING:
    from reconciler.core.model import Container, Memory, Snapshot
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder


class ExternalChanges:
    """Keeps what it noticed in the store's memory of each key, and reports it."""

    def __init__(self, *, store: Store, recorder: Recorder) -> None:
        self._store = store
        self._recorder = recorder

    def note(self, snapshot: Snapshot) -> bool:
        """Bring the memory in line with what is observed; says whether it changed."""
        if snapshot.desired is None:
            return False
        former = self._store.memory(snapshot.key)
        memory = self._note_pause(snapshot, former)
        memory = self._note_workspace(snapshot, memory)
        memory = self._note_limits(snapshot, memory)
        self._store.put_memory(snapshot.key, memory)
        return memory != former

    def _note_pause(self, snapshot: Snapshot, memory: Memory) -> Memory:
        current = roles_of(snapshot).current
        if current is not None and current.phase is Phase.PAUSED:
            return self._note_paused(snapshot, memory, current)
        known = memory.pause
        if known is None or (known.ours and _may_be_under_way(snapshot, current)):
            return memory
        if not known.ours and current is not None and current.id == known.container_id:
            cause = "others paused it, and resumed it"
            self._recorder.tell(
                events.SandboxResumed(sandbox=snapshot.key, cause=cause, container=current.name)
            )
        return replace(memory, pause=None)

    def _note_paused(self, snapshot: Snapshot, memory: Memory, current: Container) -> Memory:
        known = memory.pause if memory.pause and memory.pause.container_id == current.id else None
        wanted = snapshot.desired is not None and snapshot.desired.state is DesiredState.PAUSED
        if known is not None and (known.ours or not wanted):
            return memory
        if not wanted:
            self._recorder.tell(
                events.SandboxPausedByOthers(
                    sandbox=snapshot.key,
                    cause="running is desired",
                    container=current.name,
                    resume_in=snapshot.pause_grace,
                )
            )
        return replace(memory, pause=Pause(current.id, ours=wanted, since=snapshot.now))

    def _note_limits(self, snapshot: Snapshot, memory: Memory) -> Memory:
        current = roles_of(snapshot).current
        assert snapshot.desired is not None
        if current is None:
            return memory
        known = memory.baseline
        baseline = known if known and known.container_id == current.id else None
        baseline = baseline or baseline_of(snapshot.desired, current)
        drifted = current.limits if current.limits != baseline.limits else None
        if drifted is not None and drifted != baseline.reported:
            for field, (old, new) in baseline.limits.changed_to(drifted).items():
                self._recorder.tell(
                    events.SandboxDrifted(
                        sandbox=snapshot.key,
                        cause="others changed it, as `docker update` does",
                        container=current.name,
                        field=field,
                        old=old,
                        new=new,
                    )
                )
        return replace(memory, baseline=replace(baseline, reported=drifted))

    def _note_workspace(self, snapshot: Snapshot, memory: Memory) -> Memory:
        assert snapshot.desired is not None
        wanted, edit = wanted_volume(snapshot), snapshot.desired.spec_hash
        if memory.loss is not None and edit not in {None, memory.loss.spec_hash}:
            memory = replace(memory, loss=None)
        if wanted is None or has_volume(snapshot, wanted):
            return (
                memory
                if memory.workspace == (wanted or "")
                else replace(memory, workspace=wanted or "")
            )
        if not memory.workspace:
            return memory
        self._recorder.tell(
            events.VolumeLost(
                sandbox=snapshot.key,
                cause="someone removed it (`docker volume prune`, `docker system prune --volumes`)",
                volume=memory.workspace,
            )
        )
        return replace(memory, workspace="", loss=Loss(memory.workspace, edit))


def _may_be_under_way(snapshot: Snapshot, current: Container | None) -> bool:
    """Whether a pause that we asked for may still come."""
    assert snapshot.desired is not None
    return current is not None and snapshot.desired.state is DesiredState.PAUSED
