"""The ends of containers: those that we asked for, and deaths, with their last words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.core import policy
from reconciler.core.errors import EngineError, EngineTimeout, EngineUnavailable
from reconciler.core.model import Death, Phase
from reconciler.core.roles import roles_of
from reconciler.core.spec import DesiredState
from reconciler.service.events import Event
from reconciler.service.redact import redactor

if TYPE_CHECKING:
    from reconciler.core.model import Container, View
    from reconciler.engine.protocol import Engine
    from reconciler.loop.reporter import Reporter
    from reconciler.store.store import Store

_TAIL_LINES: Final = 20
# A short run's first lines can be older than the start that the engine tells of it.
_START_SLACK: Final = 0.2


class Exits:
    """Notes each end of a container in the restart memory, and tells of the deaths."""

    def __init__(self, engine: Engine, *, store: Store, reporter: Reporter) -> None:
        self._engine = engine
        self._store = store
        self._reporter = reporter

    async def account_for(self, view: View, *, insist: bool) -> bool:
        """Take the end of the current container into account, once; says whether there was one.

        Raises:
            EngineUnavailable: the engine is lost, and may itself be why the container ended. Only
                where ``insist`` is set: else its log is done without.
        """
        return self._own_up(view) or await self._learn_of_death(view, insist=insist)

    def _own_up(self, view: View) -> bool:
        """Take an end into account that was asked for by a daemon which died before it noted it."""
        container = _stopped_by_us(view)
        if container is None or container.finished_at in {None, view.memory.last_exit}:
            return False
        memory = policy.after_own_stop(view.memory, container.finished_at or view.now)
        self._store.put_memory(view.key, memory)
        return True

    async def _learn_of_death(self, view: View, *, insist: bool) -> bool:
        """Take an exit that nobody here asked for into account, once."""
        container = roles_of(view).current
        if container is None or not _died(view, container):
            return False
        assert view.desired is not None
        death = await self._autopsy(view, container, insist=insist)
        restart = view.desired.spec.restart
        memory = self._store.memory(view.key)  # a pull may have failed meanwhile
        memory = policy.after_death(memory, container, death, restart, view.key)
        self._store.put_memory(view.key, memory)
        self._reporter.tell(
            Event.SANDBOX_DIED,
            view.key,
            death.reason,
            exit_code=death.exit_code,
            oom_killed=death.oom_killed,
            last_lines=list(death.log_tail[-3:]),
            restarts=memory.restarts,
            restart_in=round(max(memory.not_before - view.now, 0.0), 1),
        )
        return True

    async def _autopsy(self, view: View, container: Container, *, insist: bool) -> Death:
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
            finished_at=container.finished_at or view.now,
            exit_code=container.exit_code,
            oom_killed=container.oom_killed,
            error=redactor.clean(container.error),
            log_tail=tuple(redactor.clean(line, 500) for line in tail),
        )


def _stopped_by_us(view: View) -> Container | None:
    """The container that ended because the record, or its replacement, asks for that."""
    roles, desired = roles_of(view), view.desired
    if desired is None:
        return None
    stopped: Container | None = None
    if roles.predecessor and (roles.current is None or roles.current.started_at is None):
        stopped = roles.predecessor
    elif roles.successor or desired.state is DesiredState.STOPPED:
        stopped = roles.current
    return stopped if stopped and stopped.phase is Phase.EXITED else None


def _died(view: View, container: Container) -> bool:
    """It ended, it should not have, and nobody has taken it into account yet."""
    wanted = view.desired is not None and view.desired.state is not DesiredState.STOPPED
    ended = container.phase in {Phase.EXITED, Phase.DEAD} and container.started_at is not None
    return wanted and ended and container.finished_at != view.memory.last_exit
