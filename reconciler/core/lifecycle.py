"""What a container that is as it should be still has to do: start, pause, resume, be restarted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.core import policy
from reconciler.core.model import Decision, Phase, Verb, Verdict
from reconciler.core.spec import DesiredState
from reconciler.core.steps import step_on, wind_down

if TYPE_CHECKING:
    from collections.abc import Callable

    from reconciler.core.model import Container, Desired, Snapshot

_POLL: Final = 1.0


def converge_state(snapshot: Snapshot, desired: Desired, current: Container) -> Decision | None:
    """The next step towards the desired state, or the wait for it; None where it is reached."""
    if desired.state is DesiredState.STOPPED:
        return wind_down(current, "stopped is desired") if current.live else None
    return _STATE_RULES[current.phase](snapshot, desired, current)


def _start_new(_view: Snapshot, desired: Desired, current: Container) -> Decision:
    return step_on(Verb.START, current, f"{desired.state} is desired")


def _start_again(snapshot: Snapshot, desired: Desired, current: Container) -> Decision:
    memory = snapshot.memory
    if policy.is_own_stop(memory, current):
        return step_on(Verb.START, current, f"{desired.state} is desired")
    # A command that only looks may see an end that is not yet accounted for.
    accounted = policy.is_accounted(memory, current)
    death, due = (memory.death, memory.not_before) if accounted else (None, None)
    cause = f"it ended: {death.reason if death else f'exit code {current.exit_code}'}"
    if due is not None and due > snapshot.now:
        return Decision(wait_until=due, waiting_for=f"its next restart: {cause}")
    return step_on(Verb.START, current, cause, restart=death is None or not death.unseen)


def _unpause(_view: Snapshot, desired: Desired, current: Container) -> Decision | None:
    if desired.state is DesiredState.PAUSED:
        return None
    return step_on(Verb.UNPAUSE, current, "running is desired")


def _await_restart(snapshot: Snapshot, _desired: Desired, _current: Container) -> Decision:
    return Decision(wait_until=snapshot.now + _POLL, waiting_for="the engine restarts it")


def _keep_running(snapshot: Snapshot, desired: Desired, current: Container) -> Decision | None:
    verdict = verdict_of(snapshot, current)
    if verdict is Verdict.UNHEALTHY:
        return _restart_unhealthy(snapshot, desired, current)
    if desired.state is DesiredState.RUNNING:
        return None
    if desired.spec.health is None or verdict is Verdict.GOOD:
        return step_on(Verb.PAUSE, current, "paused is desired")
    return Decision(waiting_for="a good probe, then it is paused")


def verdict_of(snapshot: Snapshot, container: Container) -> Verdict:
    """What the probes say of this run of the container; those of an earlier run do not count."""
    health = snapshot.health
    same_run = (health.container_id, health.started_at) == (container.id, container.started_at)
    return health.verdict if same_run else Verdict.UNKNOWN


def _restart_unhealthy(snapshot: Snapshot, desired: Desired, current: Container) -> Decision:
    restart = desired.spec.restart
    due = policy.unhealthy_restart_due(snapshot.health, snapshot.memory, restart, snapshot.key)
    cause = f"unhealthy: {snapshot.health.reason}"
    if due > snapshot.now:
        return Decision(wait_until=due, waiting_for=f"its next restart: {cause}")
    return step_on(Verb.STOP, current, cause, restart=True)


_STATE_RULES: Final[dict[Phase, Callable[[Snapshot, Desired, Container], Decision | None]]] = {
    Phase.CREATED: _start_new,
    Phase.EXITED: _start_again,
    Phase.PAUSED: _unpause,
    Phase.RESTARTING: _await_restart,
    Phase.RUNNING: _keep_running,
}
