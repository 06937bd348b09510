"""Record runs and exits of containers: our own stops, and deaths with their last log lines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core import policy
from reconciler.core.errors import EngineError, EngineTimeout, EngineUnavailable
from reconciler.core.model import Death, Phase
from reconciler.core.replacement import roles_of
from reconciler.core.spec import DesiredState
from reconciler.telemetry import events
from reconciler.telemetry.redact import redactor

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.model import Container, Snapshot
    from reconciler.engine.protocol import Engine
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

_TAIL_LINES: Final = 20
# A short run's first lines can be older than the start that the engine tells of it.
_START_SLACK: Final = 0.2


class ExitTracker:
    """Notes each run and each end of a container in the restart memory, and reports deaths.

    ``connections`` counts the connections to the engine, each of which began with a full list.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        store: Store,
        recorder: Recorder,
        connections: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._store = store
        self._recorder = recorder
        self._connections = connections
        self._inspected: dict[str, tuple[str, int]] = {}

    async def account_for(self, snapshot: Snapshot, *, insist: bool) -> bool:
        """Bring the memory in line with the current container; says whether it changed.

        Raises:
            EngineUnavailable: the engine is lost, and may itself be why the container ended. Only
                where ``insist`` is set: else its log is done without.
        """
        current = roles_of(snapshot).current
        if snapshot.desired is None or current is None:
            self._inspected.pop(snapshot.key, None)
            return self._note_own_stop(snapshot)
        changed = (
            self._note_run(snapshot, current)
            or self._note_own_stop(snapshot)
            or await self._note_death(snapshot, current, insist=insist)
        )
        self._inspected[snapshot.key] = (current.id, self._connections())
        return changed

    def _note_run(self, snapshot: Snapshot, container: Container) -> bool:
        if not container.live:
            return False
        memory = policy.after_look(snapshot.memory, container, snapshot.now)
        others = policy.restarts_by_others(snapshot.memory, container)
        memory = replace(memory, restarts=memory.restarts + others) if others else memory
        self._store.put_memory(snapshot.key, memory)
        if others:
            self._recorder.tell(
                events.SandboxRestartedByOthers(
                    sandbox=snapshot.key,
                    cause="the engine or a person started it",
                    container=container.name,
                    times=others,
                    restarts=memory.restarts,
                )
            )
        return memory is not snapshot.memory

    def _note_own_stop(self, snapshot: Snapshot) -> bool:
        """Account for an end that we asked for, where the daemon died before it noted that."""
        container = _stopped_by_us(snapshot)
        if container is None or policy.is_accounted(snapshot.memory, container):
            return False
        self._store.put_memory(snapshot.key, policy.after_own_stop(snapshot.memory, container))
        return True

    async def _note_death(self, snapshot: Snapshot, container: Container, *, insist: bool) -> bool:
        """Account for an end that nobody here asked for, once."""
        if not _died(snapshot, container):
            return False
        assert snapshot.desired is not None
        watched = self._inspected.get(snapshot.key) == (container.id, self._connections())
        unseen = policy.is_end_of_engine(container, watched=watched)
        death = await self._autopsy(snapshot, container, insist=insist, unseen=unseen)
        restart = snapshot.desired.spec.restart
        memory = self._store.memory(snapshot.key)  # a pull may have failed meanwhile
        memory = policy.after_death(memory, container, death, restart, snapshot.key)
        self._store.put_memory(snapshot.key, memory)
        self._recorder.tell(
            events.SandboxDied(
                sandbox=snapshot.key,
                cause=death.reason,
                exit_code=death.exit_code,
                oom_killed=death.oom_killed,
                last_lines=list(death.log_tail[-3:]),
                restarts=memory.restarts,
                restart_in=round(max((memory.not_before or 0.0) - snapshot.now, 0.0), 1),
            )
        )
        return True

    async def _autopsy(
        self, snapshot: Snapshot, container: Container, *, insist: bool, unseen: bool
    ) -> Death:
        try:
            since = (container.started_at or 0.0) - _START_SLACK
            tail = await self._engine.log_tail(container.id, _TAIL_LINES, since=since)
        except EngineError as error:
            lost = isinstance(error, EngineUnavailable) and not isinstance(error, EngineTimeout)
            if lost and insist:
                # Perhaps the engine ends, and ended the sandbox: what it is asked to start now it
                # leaves half done, and the ports taken.
                raise
            tail = (f"its log cannot be read: {error}",)
        return Death(
            container_id=container.id,
            seen_at=snapshot.now,
            exit_code=container.exit_code,
            oom_killed=container.oom_killed,
            finished_at=container.finished_at,
            unseen=unseen,
            error=redactor.clean(container.error),
            log_tail=tuple(redactor.clean(line, 500) for line in tail),
        )


def _stopped_by_us(snapshot: Snapshot) -> Container | None:
    """The container that ended because the record, or its replacement, asks for that."""
    roles, desired = roles_of(snapshot), snapshot.desired
    if desired is None:
        return None
    stopped: Container | None = None
    if roles.predecessor and (roles.current is None or roles.current.started_at is None):
        stopped = roles.predecessor
    elif roles.successor or desired.state is DesiredState.STOPPED:
        stopped = roles.current
    return stopped if stopped and stopped.phase is Phase.EXITED else None


def _died(snapshot: Snapshot, container: Container) -> bool:
    """It ended, it should not have, and it is not yet accounted for."""
    wanted = snapshot.desired is not None and snapshot.desired.state is not DesiredState.STOPPED
    # One that never started is called dead where its removal failed.
    started = container.phase is Phase.DEAD and container.started_at is not None
    ended = container.phase is Phase.EXITED or started
    return wanted and ended and not policy.is_accounted(snapshot.memory, container)
