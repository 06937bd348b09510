"""A model of one key's world: an engine that refuses nonsense, and a controller's bookkeeping.

It shares no code with ``plan.after``, so that the two are held against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from reconciler.core import policy
from reconciler.core.decide import decide
from reconciler.core.model import (
    Action,
    Container,
    Death,
    Decision,
    Failure,
    Fate,
    Health,
    ImageState,
    Observed,
    Orphans,
    Phase,
    Snapshot,
    Verb,
    Verdict,
    Volume,
)
from reconciler.core.replacement import roles_of, surplus_volumes, wanted_volume
from reconciler.core.spec import DesiredState, RestartSpec
from reconciler.core.steps import failure_key_of, still_there
from tests.core.builders import NAME, NEXT, PREV, VOLUME

LIVE: Final = {Phase.RUNNING, Phase.PAUSED, Phase.RESTARTING}
RETAIN: Final = 3600.0


class Refused(Exception):
    """The model's engine will not do that."""


@dataclass
class World:
    """``snapshot`` is all there is; what is done to it goes through ``perform``."""

    snapshot: Snapshot
    retain: float | None = RETAIN
    done: list[Action] = field(default_factory=list)
    ids: count = field(default_factory=lambda: count(1))

    # --- what the controller does around a decision -------------------------------------------

    def look(self) -> Snapshot:
        """Time passes, exits are learned of, orphans are noted."""
        self.snapshot = replace(self.snapshot, now=self.snapshot.now + 0.01)
        self._learn_of_death()
        self._note_orphans()
        return self.snapshot

    def _learn_of_death(self) -> None:
        snapshot, current = self.snapshot, roles_of(self.snapshot).current
        if current is None or snapshot.desired is None:
            return
        if current.live:
            memory = policy.after_look(snapshot.memory, current, snapshot.now)
            self.snapshot = replace(snapshot, memory=memory)
            return
        ended = current.phase in {Phase.EXITED, Phase.DEAD}
        wanted = snapshot.desired.state is not DesiredState.STOPPED
        if ended and wanted and not policy.is_accounted(snapshot.memory, current):
            death = Death(current.id, snapshot.now, 1, oom_killed=False)
            restart = snapshot.desired.spec.restart
            memory = policy.after_death(snapshot.memory, current, death, restart, snapshot.key)
            self.snapshot = replace(snapshot, memory=memory)

    def _note_orphans(self) -> None:
        snapshot, known = self.snapshot, self.snapshot.orphans
        if not snapshot.may_collect:
            return
        foundlings = snapshot.desired is None and snapshot.fate is Fate.UNKNOWN
        stray = [c.id for c in snapshot.observed.containers] if foundlings else []
        surplus = [v.name for v in surplus_volumes(snapshot)]
        orphans = Orphans(
            containers={i: known.containers.get(i, snapshot.now) for i in stray},
            volumes={n: known.volumes.get(n, snapshot.now) for n in surplus},
            retain={n: known.retain.get(n, self.retain) for n in surplus},
        )
        self.snapshot = replace(snapshot, orphans=orphans)

    def settle(self, decision: Decision) -> None:
        if not decision.waiting_for:
            self.snapshot = replace(
                self.snapshot, memory=policy.after_success(self.snapshot.memory)
            )

    def fail(self, action: Action, seen: Snapshot) -> None:
        """The step was refused, or its answer was lost."""
        swap = action.verb is Verb.START and roles_of(seen).predecessor is not None
        desired, now = seen.desired, self.snapshot.now
        restart = desired.spec.restart if desired else RestartSpec()
        about = failure_key_of(seen, action)
        failed = Failure(about.verb, about.spec_hash, "no", 1, now, now, about.target)
        memory = policy.after_failure(
            self.snapshot.memory, failed, restart, seen.key, swap=swap, relevant=still_there(seen)
        )
        self.snapshot = replace(self.snapshot, memory=memory)

    def wait(self, decision: Decision) -> bool:
        """What time brings: pulls end, probes answer, the next due time comes. False: nothing."""
        snapshot, current = self.snapshot, roles_of(self.snapshot).current
        if snapshot.image is ImageState.PULLING:
            self.snapshot = replace(snapshot, image=ImageState.FRESH)
            return True
        for container in snapshot.observed.containers:
            if container.phase is Phase.RESTARTING:
                self._change(container, phase=Phase.RUNNING, started_at=snapshot.now)
                return True
        if current is not None and self._answers_soon(current):
            run = (current.id, current.started_at, snapshot.now)
            well = Health(*run, Verdict.GOOD, snapshot.now, good=1)
            self.snapshot = replace(snapshot, health=well)
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
        """One decision at a time, until nothing is to be done nor waited for."""
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

    # --- what the engine does -----------------------------------------------------------------

    def perform(self, action: Action, seen: Snapshot, *, heard: bool = True) -> None:
        """Do it; ``heard`` False: nobody lived to write down that it was done."""
        check(action, seen)
        self.done.append(action)
        try:
            getattr(self, f"_{action.verb.replace('-', '_')}")(action)
        except Refused:
            self.fail(action, seen)
            return
        if not heard:
            return
        memory = self.snapshot.memory
        if action.verb is Verb.START:
            memory = policy.after_start(memory)
        if action.restart:
            memory = policy.after_restart(memory)
        if action.verb is Verb.STOP:
            memory = policy.after_own_stop(memory, self._get(action))
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
        snapshot, volume = self.snapshot, wanted_volume(self.snapshot)
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
    """What must hold of every step, whatever the world."""
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
            assert action.target == VOLUME == wanted_volume(seen)
            assert VOLUME not in volumes
        case Verb.REMOVE_VOLUME:
            assert action.target in volumes - in_use - {wanted_volume(seen)}
            assert seen.may_collect
        case _:
            assert mine[action.container_id].name == action.target
    if action.verb is Verb.RENAME:
        assert action.new_name in {NAME, PREV}
    if action.verb is Verb.START:
        assert [c.name for c in mine.values() if c.phase in LIVE] == []
