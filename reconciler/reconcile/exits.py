"""Record container exits: our own stops, and crashes with exit code and last log lines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.core.errors import EngineError, is_engine_lost
from reconciler.core.observed import Phase
from reconciler.core.restart import (
    Death,
    after_death,
    after_look,
    after_own_stop,
    is_accounted,
    is_end_of_engine,
    restarts_by_others,
)
from reconciler.core.spec import DesiredState
from reconciler.telemetry import events
from reconciler.telemetry.redact import redactor

if TYPE_CHECKING:
    from reconciler.core.observed import Container
    from reconciler.core.snapshot import Snapshot
    from reconciler.engine.protocol import Engine
    from reconciler.observe.informer import Informer
    from reconciler.store.store import Store
    from reconciler.telemetry.recorder import Recorder

_TAIL_LINES: Final = 20
# Seconds. The first log lines of a run can be older than its reported start.
_START_SLACK: Final = 0.2


class ExitTracker:
    """Accounts for each run and each exit of a container, and reports crashes."""

    def __init__(
        self,
        engine: Engine,
        *,
        store: Store,
        informer: Informer,
        recorder: Recorder,
    ) -> None:
        self._engine = engine
        self._store = store
        self._recorder = recorder
        self._informer = informer
        self._inspected: dict[str, tuple[str, int]] = {}

    async def account_for(self, snapshot: Snapshot, *, insist: bool) -> bool:
        """Update the memory from the current container; return whether it changed.

        Raises:
            EngineUnavailable: the engine is lost, which may be why the container exited. Only if
                ``insist`` is set: otherwise the exit is recorded without its log.
        """
        current = snapshot.roles.current
        if snapshot.desired is None or current is None:
            self._inspected.pop(snapshot.key, None)
            return self._note_own_stop(snapshot)
        changed = False
        if current.live:
            memory = after_look(snapshot.memory, current, snapshot.now)
            others = restarts_by_others(snapshot.memory, current)
            memory = replace(memory, restarts=memory.restarts + others) if others else memory
            self._store.put_memory(snapshot.key, memory)
            if others:
                self._recorder.tell(
                    events.SandboxRestartedByOthers(
                        sandbox=snapshot.key,
                        cause="the engine or a user started it",
                        container=current.name,
                        times=others,
                        restarts=memory.restarts,
                    )
                )
            changed = memory is not snapshot.memory
        changed = (
            changed
            or self._note_own_stop(snapshot)
            or await self._note_crash(snapshot, current, insist=insist)
        )
        self._inspected[snapshot.key] = (current.id, self._informer.connections)
        return changed

    def _note_own_stop(self, snapshot: Snapshot) -> bool:
        """Account for a stop that a daemon issued and was killed before it recorded it."""
        roles, desired = snapshot.roles, snapshot.desired
        stopped: Container | None = None
        if desired is None:
            return False
        if roles.predecessor and (roles.current is None or roles.current.started_at is None):
            stopped = roles.predecessor
        elif roles.successor or desired.state is DesiredState.STOPPED:
            stopped = roles.current
        if stopped is None or stopped.phase is not Phase.EXITED:
            return False
        if is_accounted(snapshot.memory, stopped):
            return False
        self._store.put_memory(snapshot.key, after_own_stop(snapshot.memory, stopped))
        return True

    async def _note_crash(self, snapshot: Snapshot, container: Container, *, insist: bool) -> bool:
        """Account once for an exit that was not ordered here, and report it."""
        assert snapshot.desired is not None
        # A container that never started is called dead if its removal failed.
        started = container.phase is Phase.DEAD and container.started_at is not None
        exited = container.phase is Phase.EXITED or started
        if (
            not exited
            or snapshot.desired.state is DesiredState.STOPPED
            or is_accounted(snapshot.memory, container)
        ):
            return False
        watched = self._inspected.get(snapshot.key) == (container.id, self._informer.connections)
        unseen = is_end_of_engine(container, watched=watched)
        since = (container.started_at or 0.0) - _START_SLACK
        try:
            tail = await self._engine.log_tail(container.id, _TAIL_LINES, since=since)
        except EngineError as error:
            if insist and is_engine_lost(error):
                # The engine may be shutting down and have stopped the sandbox. It would leave a
                # container that it starts now half made, with its ports taken.
                raise
            tail = (f"its log cannot be read: {error}",)
        death = Death(
            container_id=container.id,
            seen_at=snapshot.now,
            exit_code=container.exit_code,
            oom_killed=container.oom_killed,
            finished_at=container.finished_at,
            unseen=unseen,
            error=redactor.clean(container.error),
            log_tail=tuple(redactor.clean(line, 500) for line in tail),
        )
        restart = snapshot.desired.spec.restart
        # Read after the log: a pull may have failed meanwhile.
        memory = self._store.memory(snapshot.key)
        memory = after_death(memory, container, death, restart, snapshot.key)
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
