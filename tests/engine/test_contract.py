"""The contract of every engine: one suite, for Docker and for the fake."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from reconciler.core import naming
from reconciler.core.errors import (
    Busy,
    CommandTimeout,
    EngineError,
    ImageNotFound,
    NameTaken,
    NotFound,
    PortTaken,
    PullFailed,
    Refused,
    Unstartable,
)
from reconciler.core.observed import Check, CheckState, Container, Phase, ResourceLimits
from reconciler.engine.protocol import EngineEvent, EventKind
from tests.engine.worlds import CHANGED, World, blueprint
from tests.fakes.host import labels

FOREIGN = {naming.LABEL_INSTANCE: "somebody-else"}
SLEEP = ["sleep", "60"]


async def make(world: World, sandbox: str, **spec: Any) -> str:
    """Create a sandbox that sleeps."""
    made = blueprint(world, sandbox, **{"command": SLEEP, "init": True, **spec})
    return await world.engine.create(made)


async def run(world: World, sandbox: str, **spec: Any) -> str:
    container = await make(world, sandbox, **spec)
    await world.engine.start(container)
    return container


async def look(world: World, container: str) -> Container:
    seen = await world.engine.inspect(container)
    assert seen is not None
    return seen


async def ended(world: World, container: str) -> Container:
    async with asyncio.timeout(60):
        while (seen := await look(world, container)).live:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return seen


# --- the engine itself


async def test_info_names_the_engine(world: World) -> None:
    await world.engine.ping()
    info = await world.engine.info()
    assert info.version
    assert info.root.startswith("/")


# --- observed state


async def test_a_new_container_matches_its_config(world: World) -> None:
    volume = naming.volume_name(world.prefix, "alice")
    await world.engine.create_volume(volume, labels(world.instance, "alice"))
    ports = {8000: world.ports[0], 8001: world.ports[1]}
    container = await make(
        world, "alice", published=ports, workspace={"path": "/workspace"}, stop_timeout="7s"
    )
    seen = await look(world, container)
    assert seen == await world.engine.inspect(f"{world.prefix}alice")
    assert (seen.id, seen.name, seen.sandbox) == (container, f"{world.prefix}alice", "alice")
    assert (seen.spec, seen.spec_hash) == ("test", "1:made-for-a-test")
    assert (seen.phase, seen.live) == (Phase.CREATED, False)
    assert seen.ports == ports
    assert seen.volumes == {volume}
    assert seen.session_key == "key-of-alice"
    assert (seen.started_at, seen.finished_at) == (None, None)
    assert (seen.exit_code, seen.oom_killed, seen.stop_timeout) == (0, False, 7.0)
    # Podman writes the full name: docker.io/library/reconciler-test:latest.
    assert seen.image.rpartition("/")[2] == "reconciler-test:latest"
    assert seen.image_id.startswith("sha256:")


async def test_a_run_has_start_and_finish_times(world: World) -> None:
    container = await run(world, "alice", command=["sh", "-c", "exit 3"])
    seen = await ended(world, container)
    assert (seen.phase, seen.exit_code) == (Phase.EXITED, 3)
    assert seen.started_at is not None
    assert seen.finished_at is not None
    # Docker records the start after the run began: a very short run ends before its start.
    assert seen.created_at < seen.started_at < seen.finished_at + 1


async def test_a_list_has_our_containers_in_every_phase(world: World) -> None:
    made = await make(world, "made")
    running = await run(world, "running")
    paused = await run(world, "paused")
    world.pause(f"{world.prefix}paused")
    exited = await run(world, "exited")
    world.kill(f"{world.prefix}exited")
    await ended(world, exited)
    world.add_container(f"{world.prefix}foreign", FOREIGN)
    world.add_container(f"{world.prefix}bare", {})
    listing = await world.engine.list()
    assert {(row.id, row.name, row.sandbox, row.phase) for row in listing.containers} == {
        (made, f"{world.prefix}made", "made", Phase.CREATED),
        (running, f"{world.prefix}running", "running", Phase.RUNNING),
        (paused, f"{world.prefix}paused", "paused", Phase.PAUSED),
        (exited, f"{world.prefix}exited", "exited", Phase.EXITED),
    }


async def test_a_list_has_our_volumes(world: World) -> None:
    ours, foreign = (naming.volume_name(world.prefix, name) for name in ("alice", "bob"))
    marks = {**labels(world.instance, "alice"), naming.LABEL_RETAIN: "7d"}
    await world.engine.create_volume(ours, marks)
    world.add_volume(foreign, FOREIGN)
    (volume,) = (await world.engine.list()).volumes
    assert (volume.name, volume.sandbox, volume.retain) == (ours, "alice", "7d")


async def test_objects_without_a_sandbox_label_are_garbage(world: World) -> None:
    name = f"{world.prefix}lost"
    world.add_container(name, {naming.LABEL_INSTANCE: world.instance})
    (row,) = (await world.engine.list()).containers
    assert row.sandbox == naming.garbage_key(name)
    assert (await look(world, name)).sandbox == naming.garbage_key(name)


async def test_foreign_and_missing_containers_are_none(world: World) -> None:
    world.add_container(f"{world.prefix}foreign", FOREIGN)
    assert await world.engine.inspect(f"{world.prefix}foreign") is None
    assert await world.engine.inspect(f"{world.prefix}nobody") is None


async def test_an_id_prefix_finds_no_container(world: World) -> None:
    container = await make(world, "alice")
    assert await world.engine.inspect(container[:60]) is None


# --- create


async def test_a_create_with_a_lost_response_is_adopted(world: World) -> None:
    assert await make(world, "alice") == await make(world, "alice")


@pytest.mark.parametrize("marks", [FOREIGN, {}])
async def test_a_foreign_container_with_the_name_is_reported(
    world: World, marks: dict[str, str]
) -> None:
    world.add_container(f"{world.prefix}alice", marks)
    with pytest.raises(NameTaken, match=f"has the name {world.prefix}alice"):
        await make(world, "alice")
    assert world.has_container(f"{world.prefix}alice")


async def test_a_container_with_another_nonce_is_not_adopted(world: World) -> None:
    await make(world, "alice")
    with pytest.raises(NameTaken, match=f"has the name {world.prefix}alice"):
        await make(world, "alice", nonce="another")


async def test_new_objects_carry_owner_and_nonce(world: World) -> None:
    container = await make(world, "alice")
    seen = await look(world, container)
    assert (seen.owner, seen.nonce, seen.base) == ("me", "nonce-of-alice", "")
    (row,) = (await world.engine.list()).containers
    assert row.owner == "me"


async def test_an_image_of_a_container_inherits_its_labels(world: World) -> None:
    container = await run(world, "alice")
    image = world.commit(f"{world.prefix}alice")
    world.run_image(f"{world.prefix}debug", image)
    theirs = await look(world, f"{world.prefix}debug")
    ours = await look(world, container)
    assert (theirs.sandbox, theirs.nonce, theirs.spec_hash) == ("alice", ours.nonce, ours.spec_hash)
    inherited = await world.engine.image_labels(theirs.image_id)
    assert inherited[naming.LABEL_NONCE] == ours.nonce
    assert naming.LABEL_INSTANCE not in await world.engine.image_labels(ours.image_id)
    with pytest.raises(NotFound):
        await world.engine.image_labels("sha256:" + "0" * 64)


async def test_image_labels_do_not_override_ours(world: World) -> None:
    await run(world, "alice")
    image = world.commit(f"{world.prefix}alice")
    seen = await look(world, await make(world, "bob", image=image, name=f"{world.prefix}bob"))
    assert (seen.sandbox, seen.nonce) == ("bob", "nonce-of-bob")
    assert (seen.session_key, seen.owner) == ("key-of-bob", "me")


@pytest.mark.parametrize("image", ["nobody-has-this:1", "nobody-has-this", "sha256:" + "0" * 64])
async def test_a_missing_image_fails_the_create(world: World, image: str) -> None:
    assert not await world.engine.has_image(image)
    with pytest.raises(ImageNotFound):
        await make(world, "alice", image=image)


@pytest.mark.parametrize("image", ["reconciler-test:latest", "reconciler-test"])
async def test_a_present_image_is_found(world: World, image: str) -> None:
    assert await world.engine.has_image(image)
    await make(world, "alice", image=image)


async def test_a_missing_mount_source_is_refused(world: World) -> None:
    if world.podman:
        pytest.skip("Podman makes the folder, also where its API should not: docs/engines.md")
    mounts = [{"host_path": "/nonexistent/folder", "container_path": "/mnt"}]
    with pytest.raises(Refused, match="bind source path does not exist: /nonexistent"):
        await make(world, "alice", mounts=mounts)
    assert not world.has_container(f"{world.prefix}alice")


async def test_a_missing_runtime_is_refused(world: World) -> None:
    with pytest.raises(Refused, match=r"(?i)runtime.*no-such-runtime"):
        await make(world, "alice", security={"runtime": "no-such-runtime"})
    assert not world.has_container(f"{world.prefix}alice")


async def test_an_implicitly_created_volume_is_ours(world: World) -> None:
    await make(world, "alice", workspace={"path": "/workspace"})
    volumes = (await world.engine.list()).volumes
    # Podman ignores the labels of a mount, so the volume has none: docs/engines.md.
    assert [volume.sandbox for volume in volumes] == ([] if world.podman else ["alice"])


# --- start


async def test_start_is_idempotent(world: World) -> None:
    container = await run(world, "alice")
    started = (await look(world, container)).started_at
    await world.engine.start(container)
    assert (await look(world, container)).started_at == started


async def test_a_port_of_another_sandbox_is_taken(world: World) -> None:
    port = world.ports[2]
    await run(world, "alice", published={8000: port})
    container = await make(world, "bob", published={8000: port})
    with pytest.raises(PortTaken) as caught:
        await world.engine.start(container)
    assert caught.value.port == port
    assert (await look(world, container)).phase is Phase.CREATED


async def test_a_port_of_another_program_is_taken(world: World) -> None:
    port = world.ports[3]
    container = await make(world, "alice", published={8000: port})
    with world.taken_port(port), pytest.raises(PortTaken) as caught:
        await world.engine.start(container)
    assert caught.value.port == port
    await world.engine.start(container)


async def test_a_missing_program_is_refused(world: World) -> None:
    container = await make(world, "alice", command=["no-such-program"], init=False)
    with pytest.raises(Refused, match=r"executable file.* not found"):
        await world.engine.start(container)


async def test_a_recreated_network_makes_its_container_unstartable(world: World) -> None:
    if world.podman:
        pytest.skip("Podman joins a network by its name")
    network = f"{world.prefix}agents"
    world.add_network(network)
    container = await run(world, "alice", network={"mode": network})
    await world.engine.stop(container, 0)
    world.remove_network(network)
    world.add_network(network)
    with pytest.raises(Unstartable, match=r"network .* not found"):
        await world.engine.start(container)
    other = await run(world, "bob", network={"mode": network})
    assert (await look(world, other)).phase is Phase.RUNNING
    await world.engine.remove(other)


async def test_a_container_that_never_ran_joins_the_current_network(world: World) -> None:
    if world.podman:
        pytest.skip("Podman makes no container without its network")
    network = f"{world.prefix}agents"
    container = await make(world, "alice", network={"mode": network})
    with pytest.raises(Refused, match="not found"):
        await world.engine.start(container)
    world.add_network(network)
    await world.engine.start(container)
    await world.engine.remove(container)


async def test_a_recreated_network_owner_makes_sharers_unstartable(
    world: World,
) -> None:
    if world.podman:
        pytest.skip("Podman removes no container that another one depends on")
    sidecar = f"{world.prefix}sidecar"
    first = await run(world, "sidecar")
    container = await run(world, "alice", network={"mode": f"container:{sidecar}"})
    await world.engine.stop(container, 0)
    await world.engine.stop(first, 0)
    with pytest.raises(Refused, match="non running container"):
        await world.engine.start(container)
    await world.engine.remove(first)
    await run(world, "sidecar")
    with pytest.raises(Unstartable, match=r"(?i)no such container"):
        await world.engine.start(container)


async def test_a_missing_network_is_refused(world: World) -> None:
    with pytest.raises(Refused, match=r"network.* no-such-network.* not found"):
        await run(world, "alice", network={"mode": "no-such-network"})


async def test_a_removed_container_cannot_be_started(world: World) -> None:
    with pytest.raises(NotFound):
        await world.engine.start("0" * 64)


# --- limits


async def test_changed_limits_are_observed_and_reset(world: World) -> None:
    if world.podman:
        pytest.skip("Podman's update differs from Docker's: docs/engines.md")
    resources = {"memory": 64 << 20, "cpus": 1.0, "pids": 64}
    container = await run(world, "alice", resources=resources)
    made = await look(world, container)
    assert made.limits == ResourceLimits(
        nano_cpus=10**9, memory=64 << 20, memory_swap=128 << 20, pids=64, network="bridge"
    )
    async with world.engine.events() as events:
        world.change_limits(f"{world.prefix}alice")
        async with asyncio.timeout(60):
            async for event in events:
                if event.what == "update" and event.id == container:
                    break
    changed = await look(world, container)
    assert changed.limits == ResourceLimits(**CHANGED, network="bridge")
    await world.engine.update(container, made.limits)
    seen = await look(world, container)
    assert seen.started_at == made.started_at
    was_none = {"cpu_shares": 0, "cpuset": "", "memory_reservation": 0}
    assert replace(seen.limits, **was_none) == made.limits
    # A limit that now has another value is as good as none, and counts as unchanged.
    await world.engine.update(container, seen.limits)
    assert (await look(world, container)).limits == seen.limits


async def test_an_added_limit_is_removed(world: World) -> None:
    if world.podman:
        pytest.skip("Podman's update differs from Docker's: docs/engines.md")
    container = await run(world, "alice")
    made = await look(world, container)
    assert replace(made.limits, network="") == ResourceLimits()
    world.change_limits(f"{world.prefix}alice")
    await world.engine.update(container, made.limits)
    seen = (await look(world, container)).limits
    assert (seen.restart_policy, seen.pids) == ("no", 0)
    for name in ("nano_cpus", "memory"):
        assert getattr(seen, name) == 0 or getattr(seen, name) > CHANGED[name]


# --- stop, pause, rename, remove


async def test_stop_is_idempotent(world: World) -> None:
    container = await run(world, "alice")
    await world.engine.stop(container, 0.5)
    finished = (await look(world, container)).finished_at
    await world.engine.stop(container, 0.5)
    seen = await look(world, container)
    assert (seen.phase, seen.finished_at) == (Phase.EXITED, finished)
    await world.engine.stop("0" * 64, 0.5)


async def test_pause_and_unpause_are_idempotent(world: World) -> None:
    container = await run(world, "alice")
    for _ in range(2):
        await world.engine.pause(container)
        assert (await look(world, container)).phase is Phase.PAUSED
    for _ in range(2):
        await world.engine.unpause(container)
        assert (await look(world, container)).phase is Phase.RUNNING


async def test_a_stopped_container_cannot_be_paused(world: World) -> None:
    container = await make(world, "alice")
    with pytest.raises(EngineError, match="not running"):
        await world.engine.pause(container)
    for verb in (world.engine.pause, world.engine.unpause):
        with pytest.raises(NotFound):
            await verb("0" * 64)


async def test_a_paused_container_is_not_started(world: World) -> None:
    container = await run(world, "alice")
    await world.engine.pause(container)
    with pytest.raises(Busy):
        await world.engine.start(container)


async def test_a_rename_changes_only_the_name(world: World) -> None:
    container = await run(world, "alice")
    for _ in range(2):
        await world.engine.rename(container, f"{world.prefix}bob")
        assert (await look(world, f"{world.prefix}bob")).id == container
    assert await world.engine.inspect(f"{world.prefix}alice") is None


async def test_a_rename_to_a_taken_name_fails(world: World) -> None:
    container = await make(world, "alice")
    await make(world, "bob")
    with pytest.raises(NameTaken):
        await world.engine.rename(container, f"{world.prefix}bob")
    with pytest.raises(NotFound):
        await world.engine.rename("0" * 64, f"{world.prefix}carol")


@pytest.mark.parametrize("phase", ["created", "running", "paused", "exited"])
async def test_a_name_is_free_once_a_removal_returns(world: World, phase: str) -> None:
    container = await make(world, "alice")
    if phase != "created":
        await world.engine.start(container)
    if phase == "paused":
        await world.engine.pause(container)
    if phase == "exited":
        await world.engine.stop(container, 0)
    await world.engine.remove(container)
    assert await make(world, "alice", spec_hash="1:new") != container
    await world.engine.remove(container)


async def test_concurrent_removals_all_succeed(world: World) -> None:
    container = await run(world, "alice")
    await asyncio.gather(*(world.engine.remove(container) for _ in range(5)))
    assert not world.has_container(f"{world.prefix}alice")


# --- volumes


async def test_volumes_are_created_and_removed(world: World) -> None:
    name = naming.volume_name(world.prefix, "alice")
    for _ in range(2):
        await world.engine.create_volume(name, labels(world.instance, "alice"))
    assert world.has_volume(name)
    for _ in range(2):
        await world.engine.remove_volume(name)
    assert not world.has_volume(name)


async def test_a_volume_is_inspected_with_any_labels(world: World) -> None:
    ours, foreign = (naming.volume_name(world.prefix, name) for name in ("alice", "bob"))
    await world.engine.create_volume(ours, labels(world.instance, "alice", owner="me", nonce="1"))
    world.add_volume(foreign, FOREIGN)
    seen = await world.engine.inspect_volume(ours)
    assert seen in (await world.engine.list()).volumes
    assert (seen.instance, seen.owner, seen.nonce) == (world.instance, "me", "1")
    theirs = await world.engine.inspect_volume(foreign)
    assert theirs is not None
    assert (theirs.instance, theirs.owner) == ("somebody-else", "")
    await world.engine.remove_volume(ours)
    assert await world.engine.inspect_volume(ours) is None


async def test_creating_an_existing_volume_keeps_its_labels(world: World) -> None:
    name = naming.volume_name(world.prefix, "alice")
    world.add_volume(name, FOREIGN)
    found = await world.engine.create_volume(name, labels(world.instance, "alice", nonce="1"))
    assert (found.name, found.instance, found.nonce) == (name, "somebody-else", "")


async def test_daemon_markers_are_listed(world: World) -> None:
    for owner, holder in (("one", ""), ("other", "one"), ("other", "two")):
        marks = {naming.LABEL_INSTANCE: world.instance, naming.LABEL_OWNER: owner}
        marks[naming.LABEL_NONCE] = holder
        made = await world.engine.create_volume(naming.marker_name(world.instance, owner), marks)
    assert made.nonce == "one"
    listing = await world.engine.list()
    assert listing.holders == {"one": "", "other": "one"}
    assert listing.owners == {"one", "other"}
    assert listing.owning == set()


async def test_a_volume_in_use_is_busy(world: World) -> None:
    name = naming.volume_name(world.prefix, "alice")
    await world.engine.create_volume(name, labels(world.instance, "alice"))
    container = await make(world, "alice", workspace={"path": "/workspace"})
    with pytest.raises(Busy):
        await world.engine.remove_volume(name)
    await world.engine.remove(container)
    assert world.has_volume(name)
    await world.engine.remove_volume(name)


# --- events


async def wait_for(events: AsyncIterator[EngineEvent], what: str, key: str) -> EngineEvent:
    async with asyncio.timeout(60):
        async for event in events:
            if (event.what, event.id) == (what, key):
                return event
    raise AssertionError(f"the stream ended before {what}")


async def test_every_change_sends_an_event(world: World) -> None:
    async with world.engine.events() as events:
        container = await run(world, "alice")
        for what in ("create", "start"):
            event = await wait_for(events, what, container)
            assert (event.kind, event.sandbox) == (EventKind.CONTAINER, "alice")
            assert event.at > 1e9
        world.pause(f"{world.prefix}alice")
        await wait_for(events, "pause", container)
        world.rename(f"{world.prefix}alice", f"{world.prefix}bob")
        await wait_for(events, "rename", container)
        await world.engine.unpause(container)
        await wait_for(events, "unpause", container)
        world.kill(f"{world.prefix}bob")
        await wait_for(events, "die", container)
        await world.engine.remove(container)
        await wait_for(events, "destroy", container)


async def test_the_images_healthcheck_is_observed(world: World) -> None:
    if world.podman:
        pytest.skip("Podman runs no HEALTHCHECK by itself: systemd's timers do")
    name, image = f"{world.prefix}alice", world.add_checked_image()
    container = await make(world, "alice", image=image)
    assert (await look(world, container)).check is None
    async with world.engine.events() as events:
        await world.engine.start(container)
        first = await look(world, container)
        assert first.check is not None
        assert first.check.state is not CheckState.HEALTHY
        world.check(name, well=True)
        await wait_for(events, "health_status", container)
        seen = await until_check(world, container, CheckState.HEALTHY)
        assert seen.check is not None
        assert seen.check.result
        await world.engine.pause(container)
        paused = await look(world, container)
        assert paused.check == Check(CheckState.UNHEALTHY, seen.check.result)
        await world.engine.unpause(container)
        world.check(name, well=True)
        seen = await until_check(world, container, CheckState.HEALTHY)
        world.check(name, well=False)
        await wait_for(events, "health_status", container)
        ailing = await until_check(world, container, CheckState.UNHEALTHY)
    assert ailing.check
    assert seen.check
    assert ailing.check.result != seen.check.result
    off = await run(world, "bob", image=image, healthcheck="none")
    assert (await look(world, off)).check is None


async def until_check(world: World, container: str, state: CheckState) -> Container:
    async with asyncio.timeout(60):
        while (seen := await look(world, container)).check is None or (  # noqa: ASYNC110
            seen.check.state is not state
        ):
            await asyncio.sleep(0.02)
    return seen


async def test_events_of_other_instances_are_filtered(world: World) -> None:
    async with world.engine.events() as events:
        world.add_container(f"{world.prefix}foreign", FOREIGN)
        container = await make(world, "alice")
        async with asyncio.timeout(60):
            async for event in events:
                if event.kind is EventKind.CONTAINER:
                    assert event.id == container
                    return


async def test_events_of_workspaces_are_received(world: World) -> None:
    name = naming.volume_name(world.prefix, "alice")
    async with world.engine.events() as events:
        world.add_volume(f"{world.prefix}other", FOREIGN)
        await world.engine.create_volume(name, labels(world.instance, "alice"))
        event = await wait_for(events, "create", name)
        assert (event.kind, event.sandbox) == (EventKind.VOLUME, "")
        await world.engine.remove_volume(name)
        await wait_for(events, "destroy", name)


# --- pull


async def test_a_failing_pull_is_reported(world: World) -> None:
    with pytest.raises(PullFailed, match="nobody-has-this"):
        await world.engine.pull("127.0.0.1:9/nobody-has-this:1", lambda _: None)


# --- images


async def id_of(world: World, image: str) -> str:
    found = await world.engine.image_id(image)
    assert found is not None
    return found


async def test_the_listed_image_id_matches_its_name(world: World) -> None:
    name = world.add_image()
    listed = {image.id: image for image in await world.engine.images()}
    image = listed[await id_of(world, name)]
    assert image.references == (name,)
    assert image.size > 0
    assert await id_of(world, image.id) == image.id
    assert await world.engine.image_id("nobody-has-this:1") is None
    assert await world.engine.image_id("sha256:" + "0" * 64) is None


async def test_a_container_has_its_image_id(world: World) -> None:
    name = world.add_image()
    container = await make(world, "alice", image=name)
    assert (await look(world, container)).image_id == await id_of(world, name)


async def test_an_unused_image_is_removed(world: World) -> None:
    name = world.add_image()
    image = await id_of(world, name)
    for _ in range(2):
        await world.engine.remove_image(image)
        assert await world.engine.image_id(name) is None


@pytest.mark.parametrize("phase", ["created", "running", "exited"])
@pytest.mark.parametrize("ours", [True, False])
async def test_an_image_in_use_is_busy(world: World, phase: str, *, ours: bool) -> None:
    name = world.add_image()
    image = await id_of(world, name)
    container = await make(world, "alice", image=name)
    if phase != "created":
        await world.engine.start(container)
    if phase == "exited":
        await world.engine.stop(container, 0)
    if not ours:
        await world.engine.remove(container)
        world.add_container(f"{world.prefix}foreign", FOREIGN, image=name)
    with pytest.raises(Busy):
        await world.engine.remove_image(image)
    assert await id_of(world, name) == image


@pytest.mark.parametrize("of_another", ["", "-of-another"])
async def test_an_image_with_a_second_name_is_busy(world: World, of_another: str) -> None:
    name = world.add_image()
    image = await id_of(world, name)
    world.tag_image(name, name.partition(":")[0] + of_another)
    with pytest.raises(Busy):
        await world.engine.remove_image(image)
    assert await id_of(world, name) == image


# --- logs and commands


async def test_the_log_tail_is_returned(world: World) -> None:
    script = "echo one; echo two; echo three; exit 0"
    container = await run(world, "alice", command=["sh", "-c", script])
    await ended(world, container)
    assert list(await world.engine.log_tail(container, 2)) == ["two", "three"]
    assert list(await world.engine.log_tail(container, 9)) == ["one", "two", "three"]
    assert list(await world.engine.log_tail(container, 0)) == []
    with pytest.raises(NotFound):
        await world.engine.log_tail("0" * 64, 2)


async def test_a_followed_log_ends_with_the_container(world: World) -> None:
    container = await run(world, "alice", command=["sh", "-c", "echo one; echo two; sleep 60"])
    async with asyncio.timeout(60), world.engine.follow_logs(container, 10) as lines:
        assert await anext(lines) == "one"
        assert await anext(lines) == "two"
        world.kill(f"{world.prefix}alice")
        assert [line async for line in lines] == []


async def test_a_followed_log_starts_with_the_requested_lines(world: World) -> None:
    container = await run(world, "alice", command=["sh", "-c", "echo one; echo two; echo three"])
    await ended(world, container)
    for lines, first in ((0, []), (1, ["three"]), (2, ["two", "three"])):
        async with asyncio.timeout(60), world.engine.follow_logs(container, lines) as log:
            assert [line async for line in log] == first


async def test_a_command_returns_its_exit_code(world: World) -> None:
    container = await run(world, "alice")
    assert await world.engine.run_in(container, ["true"], 10) == 0
    assert await world.engine.run_in(container, ["sh", "-c", "exit 3"], 10) == 3
    assert await world.engine.run_in(container, ["no-such-program"], 10) in {126, 127}


async def test_a_hanging_command_times_out(world: World) -> None:
    container = await run(world, "alice")
    with pytest.raises(CommandTimeout, match="within"):
        await world.engine.run_in(container, ["sh", "-c", "sleep 30"], 0.5)


async def test_a_hanging_command_is_not_started_again(world: World) -> None:
    container, hanging = await run(world, "alice"), ["sh", "-c", "sleep 30"]
    with pytest.raises(CommandTimeout, match="within"):
        await world.engine.run_in(container, hanging, 0.5)
    with pytest.raises(CommandTimeout, match="has not ended"):
        await world.engine.run_in(container, hanging, 10)
    assert await world.engine.run_in(container, ["true"], 10) == 0
    await world.engine.stop(container, 0)
    await world.engine.start(container)
    with pytest.raises(CommandTimeout, match="within"):
        await world.engine.run_in(container, hanging, 0.5)


async def test_a_command_in_a_stopped_container_is_busy(world: World) -> None:
    container = await make(world, "alice")
    with pytest.raises(EngineError, match=r"not running|on running containers"):
        await world.engine.run_in(container, ["true"], 10)
