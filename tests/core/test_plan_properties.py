"""From every state of the engine, the actions converge to every desired state."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.action import Decision, Source, Verb
from reconciler.core.decide import decide
from reconciler.core.drift import replace_cause
from reconciler.core.health import Health, Verdict
from reconciler.core.observed import Phase
from reconciler.core.plan import MAX_STEPS, after, plan
from reconciler.core.restart import End, Failure, SandboxMemory
from reconciler.core.snapshot import Identity, ImageState, Snapshot
from reconciler.core.spec import DesiredState, OnChange
from tests.core.builders import (
    HASH,
    HEALTH,
    IDENTITY,
    NAME,
    NEXT,
    NOW,
    OLD,
    PORTS,
    PREV,
    VOLUME,
    blocked,
    container,
    desired,
    snapshot,
    volume,
)
from tests.core.worlds import LIVE, World, check

settings.register_profile("core", derandomize=True, deadline=None, database=None)
steady = settings(settings.get_profile("core"), max_examples=200)

LIMIT = 120
STATES = st.sampled_from(["running", "paused", "stopped"])
ON_CHANGE = st.sampled_from(["recreate", "next-start", "ignore"])
HASHES = st.sampled_from([HASH, OLD, "1:older", "0:unknown"])
MOMENTS = st.sampled_from([NOW - 5000, NOW - 10, NOW, NOW + 10, NOW + 90000])
OTHER_VOLUME = "openhands-workspace-under-another-prefix"
TARGET = {"running": {Phase.RUNNING}, "paused": {Phase.PAUSED}}
AT_REST = {Phase.CREATED, Phase.EXITED}

records = st.builds(
    desired,
    STATES,
    on_change=ON_CHANGE,
    pull=st.sampled_from(["missing", "always", "never"]),
    workspace=st.sampled_from([None, {"path": "/workspace"}]),
    health=st.sampled_from([None, HEALTH]),
    identity=st.sampled_from([IDENTITY, Identity("secret-key", {8000: 30001})]),
)


@st.composite
def containers(draw, name):
    made = container(
        name,
        draw(st.sampled_from(Phase)),
        draw(HASHES),
        ports=draw(st.sampled_from([PORTS, {8000: 30001}, {8001: 30000}, {}])),
        volumes=draw(st.sampled_from([frozenset(), frozenset({VOLUME})])),
        created_at=draw(MOMENTS),
    )
    if made.phase is Phase.EXITED:
        return replace(made, finished_at=draw(MOMENTS))
    return made


@st.composite
def container_sets(draw):
    """Any of current, successor and predecessor, and up to two strays."""
    names = draw(st.sets(st.sampled_from([NAME, NEXT, PREV, "renamed", "renamed-too"])))
    return [draw(containers(name)) for name in sorted(names)]


failures = st.builds(
    lambda verb, spec_hash, count, at, wait, on: Failure(
        verb, spec_hash, "no", count, at, at + wait, "" if verb.makes else on
    ),
    st.sampled_from(Verb),
    st.sampled_from([HASH, OLD, ""]),
    st.integers(1, 40),
    st.sampled_from([NOW - 5000, NOW - 1, NOW]),
    st.sampled_from([0.5, 60.0, 3600.0]),
    st.sampled_from([container(name).id for name in (NAME, NEXT, PREV, "renamed")] + [VOLUME]),
)
memories = st.builds(
    SandboxMemory,
    restarts=st.integers(0, 3),
    streak=st.integers(0, 40),
    not_before=st.sampled_from([None, NOW - 1, NOW + 50]),
    failures=st.lists(failures, max_size=3, unique_by=lambda f: (f.verb, f.spec_hash)).map(tuple),
)


@st.composite
def snapshots(draw, wanted):
    several = draw(container_sets())
    of = draw(st.sampled_from(several)) if several else None
    verdict = draw(st.sampled_from(Verdict))
    seen_at = draw(st.sampled_from([NOW - 5000, NOW - 10, NOW]))
    health = Health(of.id, of.started_at, seen_at, verdict, NOW) if of else Health()
    ended = draw(st.none() | st.just(End.of(of))) if of else None
    return snapshot(
        draw(wanted),
        *several,
        volumes=draw(st.sampled_from([(), (volume(),), (volume(), volume(OTHER_VOLUME))])),
        memory=replace(draw(memories), ended=ended),
        health=health,
        image=draw(st.sampled_from(ImageState)),
        deleted=draw(st.booleans()),
        may_collect=draw(st.booleans()),
    )


any_record = st.one_of(st.none(), records)


def assert_as_desired(world: World) -> None:
    """Assert that the sandbox is as desired, and that nothing is left to do or to remove."""
    seen = world.look()
    assert plan(seen).actions == ()
    assert decide(seen).action is None
    assert seen.memory.failures == ()
    left = seen.observed.containers
    wanted = seen.desired
    if wanted is None:
        assert [c.name for c in left if may_go(seen)] == []
        return
    assert [c.name for c in left] == [NAME]
    assert left[0].phase in TARGET.get(wanted.state, AT_REST)
    assert replace_cause(seen, wanted, left[0]) == ""
    if wanted.spec.on_change is OnChange.RECREATE:
        assert left[0].spec_hash in {wanted.spec_hash, "0:unknown"}
    kept = {v.name for v in seen.observed.volumes}
    assert not wanted.spec.workspace or left[0].volumes <= kept or left[0].phase in LIVE
    if seen.may_collect:
        assert OTHER_VOLUME not in kept


def may_go(seen: Snapshot) -> bool:
    return seen.may_collect or seen.deleted


@steady
@given(snapshots(any_record))
def test_single_decisions_converge(seen):
    world = World(seen)
    world.converge(LIMIT)
    assert_as_desired(world)


def real_id(world: World, action) -> str:
    """Replace the id of a container that the plan creates: look it up by name."""
    by_name = {c.name: c.id for c in world.snapshot.observed.containers}
    return by_name[action.target] if action.container_id.startswith("new:") else action.container_id


@steady
@given(snapshots(any_record), st.lists(st.integers(0, 8), max_size=6))
def test_interrupted_plans_converge(seen, cuts):
    world = World(seen)
    for cut in [*cuts, *[MAX_STEPS] * LIMIT]:
        actions = plan(world.look()).actions
        for action in actions[:cut]:
            done = len(world.snapshot.memory.failures)
            world.perform(replace(action, container_id=real_id(world, action)), world.snapshot)
            if len(world.snapshot.memory.failures) > done or action.verb is Verb.PULL:
                break
        if actions and cut:
            continue
        decision = decide(world.look())
        world.settle(decision)
        if decision.action is None and not world.wait(decision) and cut == MAX_STEPS:
            break
    assert_as_desired(world)


@steady
@given(snapshots(any_record))
def test_a_plan_equals_the_decisions(seen):
    foreseen, model = [], seen
    while len(foreseen) < MAX_STEPS and (action := decide(model).action):
        check(action, model)
        foreseen.append(action)
        model = after(model, action)
    assert plan(seen).actions == tuple(foreseen)
    assert len(foreseen) < MAX_STEPS
    assert plan(seen) == plan(replace(seen))


ACCIDENTS = st.sampled_from(["", "refused", "answer lost", "killed"])
EDITS = st.tuples(STATES, st.sampled_from([HASH, OLD, "1:third"]), ON_CHANGE)
DRIFTS = st.tuples(st.integers(0, 4), st.sampled_from(["run", "pause", "end", "rename", "remove"]))


@st.composite
def disturbances(draw):
    """What happens at each of the first steps: a failure, an edit, a change by others."""
    return draw(
        st.lists(
            st.tuples(
                ACCIDENTS,
                st.one_of(st.none(), EDITS),
                st.one_of(st.none(), st.none(), DRIFTS),
            ),
            max_size=25,
        )
    )


def meddle(world: World, drift: tuple[int, str]) -> None:
    """Change a container as a user of the engine may."""
    seen, (index, what) = world.snapshot.observed.containers, drift
    if index >= len(seen):
        return
    one = seen[index]
    match what:
        case "run" if one.phase in AT_REST:
            world._change(one, phase=Phase.RUNNING, started_at=world.snapshot.now)
        case "pause" if one.phase is Phase.RUNNING:
            world._change(one, phase=Phase.PAUSED)
        case "end" if one.phase in LIVE:
            world._change(one, phase=Phase.EXITED, finished_at=world.snapshot.now, exit_code=137)
        case "rename":
            world._change(one, name=f"renamed-{one.id}")
        case "remove":
            world._set(tuple(c for c in seen if c is not one))


def edit(world: World, change: tuple[str, str, str]) -> None:
    wanted = world.snapshot.desired
    if wanted is None:
        return
    state, spec_hash, on_change = change
    fields = {"state": DesiredState(state), "spec_hash": spec_hash}
    spec = wanted.spec.model_copy(update={"on_change": OnChange(on_change)})
    world.snapshot = replace(world.snapshot, desired=replace(wanted, spec=spec, **fields))


@steady
@given(snapshots(any_record), disturbances())
def test_any_failures_edits_and_outside_changes_converge(seen, events):
    world = World(seen)
    for accident, change, drift in events:
        if change:
            edit(world, change)
        if drift:
            meddle(world, drift)
        looked = world.look()
        decision = decide(looked)
        if decision.action is None:
            world.settle(decision)
            world.wait(decision)
        elif accident == "refused":
            check(decision.action, looked)
            world.fail(decision.action, looked)
        else:
            world.perform(decision.action, looked, recorded=accident != "killed")
            if accident == "answer lost":
                world.fail(decision.action, looked)
    world.converge(LIMIT)
    assert_as_desired(world)


@steady
@given(
    st.sampled_from(["running", "paused"]),
    st.sampled_from([None, HEALTH]),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_the_old_container_runs_while_the_new_one_waits(state, health, no_create, no_start):
    world = World(snapshot(desired(state, health=health), container(spec_hash=OLD)))
    refusals = {Verb.CREATE: no_create, Verb.START: no_start}
    for _ in range(LIMIT * 2):
        seen = world.look()
        decision = decide(seen)
        action = decision.action
        if action is None:
            current = seen.roles.current
            assert current is not None
            assert current.phase in LIVE
            assert [c.name for c in seen.observed.containers] == [NAME]
            if not world.wait(decision):
                break
        elif refusals.get(action.verb, 0) and started_hash(seen, action) == HASH:
            refusals[action.verb] -= 1
            world.fail(action, seen)
        else:
            world.perform(action, seen)
    world.settle(Decision())
    assert refusals == {Verb.CREATE: 0, Verb.START: 0}
    assert_as_desired(world)


def started_hash(seen: Snapshot, action) -> str:
    hashes = {c.id: c.spec_hash for c in seen.observed.containers}
    return hashes.get(action.container_id, HASH)


@steady
@given(snapshots(st.none()))
def test_nothing_uncertain_is_collected(seen):
    world = World(replace(seen, may_collect=False, deleted=False))
    world.converge(LIMIT)
    assert world.done == []


@steady
@given(snapshots(st.none()), st.sampled_from([None, 0.0, 60.0, 86400.0]))
def test_an_orphan_is_removed_after_its_time(seen, retain):
    world = World(replace(seen, may_collect=True, deleted=False), retain=retain)
    begun, removed = seen.now, {}
    for _ in range(LIMIT):
        decision = decide(world.look())
        if decision.action is not None:
            removed.setdefault(decision.action.verb, world.snapshot.now - begun)
            world.perform(decision.action, world.snapshot)
        elif not world.wait(decision):
            break
    assert world.snapshot.observed.containers == ()
    assert removed.get(Verb.REMOVE, seen.gc_grace) >= seen.gc_grace
    left = {v.name for v in world.snapshot.observed.volumes}
    assert left == ({v.name for v in seen.observed.volumes} if retain is None else set())
    assert removed.get(Verb.REMOVE_VOLUME, 1e9) >= (retain or 0.0)


@steady
@given(snapshots(records))
def test_a_record_without_a_hash_creates_and_replaces_nothing(seen):
    blind = replace(seen.desired, spec_hash=None, identity=None)
    world = World(replace(seen, desired=blind, blockers=blocked(Source.ENV_FILE, "no env file")))
    world.converge(LIMIT)
    assert {a.verb for a in world.done} & {Verb.CREATE, Verb.PULL} == set()
    current = world.snapshot.roles.current
    if current is not None:
        assert current.phase in TARGET.get(blind.state, AT_REST)


@pytest.mark.parametrize("phase", Phase)
def test_a_deleted_sandbox_converges_in_every_phase(phase):
    world = World(snapshot(None, container(NAME, phase), deleted=True))
    world.converge(LIMIT)
    assert world.snapshot.observed.containers == ()
