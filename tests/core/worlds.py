"""A model of the engine and the controller for one key. The engine refuses invalid calls.

It shares no code with ``plan.after``, so that the two are held against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from reconciler.core.action import Action, Decision, Verb
from reconciler.core.decide import decide
from reconciler.core.failures import after_failure, after_success, failure_key_of, still_there
from reconciler.core.health import Health, Verdict
from reconciler.core.observed import Container, Observed, Phase, Volume
from reconciler.core.restart import (
    Death,
    Failure,
    after_death,
    after_look,
    after_own_stop,
    after_restart,
    after_start,
    is_accounted,
)
from reconciler.core.snapshot import ImageState, Orphans, Snapshot
from reconciler.core.spec import DesiredState, RestartSpec
from tests.core.builders import NAME, NEXT, PREV, VOLUME

LIVE: Final = {Phase.RUNNING, Phase.PAUSED, Phase.RESTARTING}
RETAIN: Final = 3600.0


class Refused(Exception):
    """The modelled engine refuses the call."""


@dataclass
class World:
    """``snapshot`` is the whole state; ``perform`` changes it."""

    snapshot: Snapshot
    retain: float | None = RETAIN
    done: list[Action] = field(default_factory=list)
    ids: count = field(default_factory=lambda: count(1))

    # --- the controller -------------------------------------------

    def look(self) -> Snapshot:
        """Advance the clock, account for exits and note orphans."""
        self.snapshot = replace(self.snapshot, now=self.snapshot.now + 0.01)
        self._learn_of_death()
        self._note_orphans()
        return self.snapshot

    def _learn_of_death(self) -> None:
        snapshot, current = self.snapshot, self.snapshot.roles.current
        if current is None or snapshot.desired is None:
            return
        if current.live:
            memory = after_look(snapshot.memory, current, snapshot.now)
            self.snapshot = replace(snapshot, memory=memory)
            return
        ended = current.phase in {Phase.EXITED, Phase.DEAD}
        wanted = snapshot.desired.state is not DesiredState.STOPPED
        if ended and wanted and not is_accounted(snapshot.memory, current):
            death = Death(current.id, snapshot.now, 1, oom_killed=False)
            restart = snapshot.desired.spec.restart
            memory = after_death(snapshot.memory, current, death, restart, snapshot.key)
            self.snapshot = replace(snapshot, memory=memory)

    def _note_orphans(self) -> None:
        snapshot, known = self.snapshot, self.snapshot.orphans
        if not snapshot.may_collect:
            return
        are_orphans = snapshot.desired is None and not snapshot.deleted
        stray = [c.id for c in snapshot.observed.containers] if are_orphans else []
        surplus = [v.name for v in snapshot.surplus_volumes]
        orphans = Orphans(
            containers={i: known.containers.get(i, snapshot.now) for i in stray},
            volumes={n: known.volumes.get(n, snapshot.now) for n in surplus},
            retain={n: known.retain.get(n, self.retain) for n in surplus},
        )
        self.snapshot = replace(snapshot, orphans=orphans)

    def settle(self, decision: Decision) -> None:
        if not decision.waiting_for:
            self.snapshot = replace(self.snapshot, memory=after_success(self.snapshot.memory))

    def fail(self, action: Action, seen: Snapshot) -> None:
        """Remember an action that was refused, or whose response was lost."""
        swap = action.verb is Verb.START and seen.roles.predecessor is not None
        desired, now = seen.desired, self.snapshot.now
        restart = desired.spec.restart if desired else RestartSpec()
        about = failure_key_of(seen, action)
        failed = Failure(about.verb, about.spec_hash, "no", 1, now, now, about.target)
        memory = after_failure(
            self.snapshot.memory, failed, restart, seen.key, swap=swap, relevant=still_there(seen)
        )
        self.snapshot = replace(self.snapshot, memory=memory)

    def wait(self, decision: Decision) -> bool:
        """End a pull, get a probe result, or advance to the due time; False if there is nothing."""
        snapshot, current = self.snapshot, self.snapshot.roles.current
        if snapshot.image is ImageState.PULLING:
            self.snapshot = replace(snapshot, image=ImageState.FRESH)
            return True
        for container in snapshot.observed.containers:
            if container.phase is Phase.RESTARTING:
                self._change(container, phase=Phase.RUNNING, started_at=snapshot.now)
                return True
        if current is not None and self._answers_soon(current):
            run = (current.id, current.started_at, snapshot.now)
            good = Health(*run, Verdict.GOOD, snapshot.now, good=1)
            self.snapshot = replace(snapshot, health=good)
            return True
        if decision.wait_until is None:
            return False
        assert decision.wait_until > snapshot.now
        self.snapshot = replace(snapshot, now=decision.wait_until)
        return True

    def _answers_soon(self, current: Container) -> bool:
        desired, health = self.snapshot.desired, self.snapshot.health
        if desired is None or desired.spec.health is None or current.phase is not Phase.RUNNING:
            return False
        same_run = (health.container_id, health.started_at) == (current.id, current.started_at)
        return not same_run or health.verdict in {Verdict.UNKNOWN, Verdict.BAD}

    def converge(self, limit: int) -> None:
        """Perform one decision at a time until there is nothing to do or to wait for."""
        for _ in range(limit):
            seen = self.look()
            decision = decide(seen)
            if decision.action is not None:
                self.perform(decision.action, seen)
                continue
            self.settle(decision)
            if not self.wait(decision):
                return
        raise AssertionError(f"no end: {list(map(str, self.done[-12:]))}")

    # --- the engine -----------------------------------------------------------------

    def perform(self, action: Action, seen: Snapshot, *, recorded: bool = True) -> None:
        """Perform an action; ``recorded`` False: the daemon dies before it can note it."""
        check(action, seen)
        self.done.append(action)
        try:
            getattr(self, f"_{action.verb.replace('-', '_')}")(action)
        except Refused:
            self.fail(action, seen)
            return
        if not recorded:
            return
        memory = self.snapshot.memory
        if action.verb is Verb.START:
            memory = after_start(memory)
        if action.restart:
            memory = after_restart(memory)
        if action.verb is Verb.STOP:
            memory = after_own_stop(memory, self._get(action))
        self.snapshot = replace(self.snapshot, memory=memory)

    def _get(self, action: Action) -> Container:
        return next(c for c in self.snapshot.observed.containers if c.id == action.container_id)

    def _set(self, containers: tuple[Container, ...]) -> None:
        observed = Observed(containers, self.snapshot.observed.volumes)
        self.snapshot = replace(self.snapshot, observed=observed)

    def _change(self, container: Container, **changes: object) -> None:
        changed = replace(container, **changes)
        others = self.snapshot.observed.containers
        self._set(tuple(changed if c.id == container.id else c for c in others))

    def _expect(self, action: Action, *phases: Phase) -> Container:
        container = self._get(action)
        assert container.phase in phases, f"{action} on {container.phase}"
        return container

    def _free(self, name: str) -> None:
        if any(c.name == name for c in self.snapshot.observed.containers):
            raise Refused

    def _pull(self, _action: Action) -> None:
        self.snapshot = replace(self.snapshot, image=ImageState.PULLING)

    def _create_volume(self, action: Action) -> None:
        made = Volume(action.target, self.snapshot.key)
        volumes = (*self.snapshot.observed.volumes, made)
        self.snapshot = replace(
            self.snapshot, observed=Observed(self.snapshot.observed.containers, volumes)
        )

    def _create(self, action: Action) -> None:
        snapshot, volume = self.snapshot, self.snapshot.wanted_volume
        desired = snapshot.desired
        assert desired is not None
        assert desired.identity is not None
        self._free(action.target)
        if volume:
            assert volume in {v.name for v in snapshot.observed.volumes}
        made = Container(
            id=f"made-{next(self.ids)}",
            name=action.target,
            sandbox=snapshot.key,
            spec=desired.spec_name,
            spec_hash=desired.spec_hash or "",
            phase=Phase.CREATED,
            created_at=snapshot.now,
            ports=dict(desired.identity.ports),
            volumes=frozenset({volume} if volume else ()),
        )
        self._set((*snapshot.observed.containers, made))
        self.snapshot = replace(self.snapshot, image=ImageState.UNKNOWN)

    def _start(self, action: Action) -> None:
        container = self._expect(action, Phase.CREATED, Phase.EXITED)
        self._change(container, phase=Phase.RUNNING, started_at=self.snapshot.now, finished_at=None)

    def _stop(self, action: Action) -> None:
        container = self._expect(action, Phase.RUNNING, Phase.RESTARTING)
        self._change(container, phase=Phase.EXITED, finished_at=self.snapshot.now, exit_code=143)

    def _pause(self, action: Action) -> None:
        self._change(self._expect(action, Phase.RUNNING), phase=Phase.PAUSED)

    def _unpause(self, action: Action) -> None:
        self._change(self._expect(action, Phase.PAUSED), phase=Phase.RUNNING)

    def _rename(self, action: Action) -> None:
        self._free(action.new_name)
        self._change(self._get(action), name=action.new_name)

    def _remove(self, action: Action) -> None:
        kept = (c for c in self.snapshot.observed.containers if c.id != action.container_id)
        self._set(tuple(kept))

    def _remove_volume(self, action: Action) -> None:
        kept = tuple(v for v in self.snapshot.observed.volumes if v.name != action.target)
        self.snapshot = replace(
            self.snapshot, observed=Observed(self.snapshot.observed.containers, kept)
        )


def check(action: Action, seen: Snapshot) -> None:
    """Assert what must hold for every action in every state."""
    mine = {c.id: c for c in seen.observed.containers}
    volumes = {v.name for v in seen.observed.volumes}
    in_use = {name for c in mine.values() for name in c.volumes}
    assert action.cause
    match action.verb:
        case Verb.PULL:
            assert seen.desired is not None
            assert action.target == seen.desired.spec.image
        case Verb.CREATE:
            assert action.target in {NAME, NEXT}
        case Verb.CREATE_VOLUME:
            assert action.target == VOLUME == seen.wanted_volume
            assert VOLUME not in volumes
        case Verb.REMOVE_VOLUME:
            assert action.target in volumes - in_use - {seen.wanted_volume}
            assert seen.may_collect
        case _:
            assert mine[action.container_id].name == action.target
    if action.verb is Verb.RENAME:
        # A dead container that cannot be removed may have to take the third name.
        dead = mine[action.container_id].phase in {Phase.DEAD, Phase.REMOVING}
        assert action.new_name in ({NAME, PREV, NEXT} if dead else {NAME, PREV})
    if action.verb is Verb.START:
        assert [c.name for c in mine.values() if c.phase in LIVE] == []
