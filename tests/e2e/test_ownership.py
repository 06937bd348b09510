"""Ownership on a real engine: snapshots, other daemons, lost databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import World, box, web, world_of
from tests.harness.proxy import FaultProxy

QUICK = {"RECONCILER_GC_GRACE": "1s", "RECONCILER_RESYNC_INTERVAL": "1s"}
SLEEP = ("sleep", "1000000")


@pytest.fixture
def quick(world: World) -> World:
    world.daemon.env.update(QUICK)
    return world


@pytest.fixture
def snapshots(world: World) -> Iterator[list[str]]:
    """Images that a test made of a sandbox; they are removed in the end."""
    names: list[str] = []
    yield names
    world.daemon.close()
    world.docker.purge(world.instance.name)
    for name in names:
        world.docker.rm_image(name)


def commit(world: World, snapshots: list[str]) -> str:
    image = f"{world.instance.name}/snapshot:1"
    world.docker.commit(world.name("alice"), image)
    snapshots.append(image)
    return image


def some_passes(world: World) -> None:
    """Wait until the daemon has compared everything several times over."""
    world.declare(alice=box(), probe=box("stopped"))
    world.converge("alice", "probe")
    world.declare(alice=box())
    world.converge("alice")


@pytest.mark.parametrize("name", ["my-debug", "alice.next"])
def test_a_container_from_a_snapshot_is_left_alone(
    quick: World, snapshots: list[str], name: str
) -> None:
    quick.start(alice=box())
    image = commit(quick, snapshots)
    debug = quick.name(name)
    volume = [{"Type": "volume", "Target": "/anonymous"}]
    theirs = quick.docker.run(debug, *SLEEP, image=image, host_config={"Mounts": volume})
    ours = quick.id("alice")
    some_passes(quick)
    quick.daemon.terminate()
    quick.daemon.start()
    some_passes(quick)
    assert (quick.id("alice"), quick.ids()[debug]) == (ours, theirs)
    # Its record is deleted, and theirs is no orphan.
    quick.declare(bob=box("stopped"))
    quick.converge("bob")
    quick.wait(lambda: not quick.daemon.events("garbage.found") and quick.id("alice") is None)
    assert quick.ids()[debug] == theirs
    assert quick.docker.state(debug) == "running"


def test_a_snapshot_does_not_become_the_sandbox(quick: World, snapshots: list[str]) -> None:
    quick.start(alice=box())
    image = commit(quick, snapshots)
    quick.daemon.terminate()
    quick.docker.rm(quick.name("alice"))
    debug = quick.name("my-debug")
    theirs = quick.docker.run(debug, *SLEEP, image=image)
    quick.daemon.start()
    quick.converge("alice")
    assert quick.ids()[debug] == theirs
    assert quick.id("alice") != theirs
    # Under the sandbox's own name it is in the way, and says so.
    quick.daemon.terminate()
    quick.docker.rm(quick.name("alice"))
    quick.docker.rm(debug)
    theirs = quick.docker.run(quick.name("alice"), *SLEEP, image=image)
    quick.daemon.start()
    quick.wait_error("alice", quick.name("alice"), "did not create it")
    assert quick.id("alice") == theirs


def test_a_lost_database_adopts_no_snapshot(quick: World, snapshots: list[str]) -> None:
    quick.start(alice=box())
    image = commit(quick, snapshots)
    quick.daemon.terminate()
    for file in quick.daemon.state_dir.glob("*.db*"):
        file.unlink()
    quick.docker.rm(quick.name("alice"))
    theirs = quick.docker.run(quick.name("alice"), *SLEEP, image=image)
    quick.daemon.start()
    quick.wait_error("alice", "did not create it")
    assert quick.id("alice") == theirs


def test_a_changed_prefix_keeps_container_and_workspace(quick: World) -> None:
    brief = {"path": "/workspace", "retain": "1s"}
    quick.start(alice=box(workspace=brief))
    quick.run_in("alice", "echo thesis > /workspace/t")
    ours = quick.id("alice")
    quick.daemon.terminate()
    prefix = f"{quick.instance.prefix}new-"
    quick.daemon.env["RECONCILER_CONTAINER_NAME_PREFIX"] = prefix
    quick.daemon.start()
    quick.wait(lambda: quick.ids().get(f"{prefix}alice") == ours)
    assert quick.ask("/v1/gc?dry_run=true", "POST") == []
    quick.declare(alice=box(workspace=brief, env={"V": "2"}))
    quick.wait(lambda: quick.ids().get(f"{prefix}alice") not in {None, ours})
    quick.converge("alice")
    code, text = quick.docker.exec(f"{prefix}alice", "cat", "/workspace/t")
    assert (code, text) == (0, "thesis\n")
    assert quick.volumes() == {"alice"}


@pytest.mark.parametrize("running", [True, False])
def test_a_workspace_from_a_backup_is_adopted(quick: World, *, running: bool) -> None:
    volume = quick.instance.volume("alice")
    quick.docker.create_volume(volume)
    helper = quick.name("restore")
    quick.docker.run(
        helper, "sh", "-c", "echo data > /w/file", host_config={"Binds": [f"{volume}:/w"]}
    )
    quick.wait(lambda: quick.docker.state(helper) == "exited")
    quick.docker.rm(helper)
    try:
        quick.declare(alice=box())
        if running:
            quick.daemon.start()
            row = quick.wait_error("alice", "reconciler adopt alice")
            assert "remove it" not in row["reason"]
        done = quick.daemon.cli("adopt", "alice")
        assert done.returncode == 0, done.stderr
        assert volume in done.stdout
        if not running:
            quick.daemon.start()
        quick.converge("alice")
        assert quick.run_in("alice", "cat /workspace/file") == "data"
        quick.declare(bob=box("stopped"))
        quick.converge("bob")
        assert volume in quick.docker.volumes()
    finally:
        quick.daemon.close()
        quick.docker.purge(quick.instance.name)
        quick.docker.rm_volume(volume, force=True)


def test_a_lost_database_and_few_records_remove_nothing(quick: World) -> None:
    names = [f"s{number}" for number in range(6)]
    quick.start(**dict.fromkeys(names, box("stopped")))
    ids = quick.ids()
    quick.daemon.terminate()
    for file in quick.daemon.state_dir.glob("*.db*"):
        file.unlink()
    quick.declare(s0=box("stopped"))
    quick.daemon.start()
    held = quick.daemon.wait_event("gc.held")
    assert (held["deletions"], held["of"]) == (5, 6)
    assert quick.daemon.cli("gc").returncode == 0
    assert "gc --allow-mass-delete" in quick.daemon.cli("status").stdout
    assert quick.ids() == ids
    quick.daemon.cli("gc", "--allow-mass-delete")
    quick.wait(lambda: quick.names() == ["s0"])


def test_a_second_daemon_of_one_instance_does_not_start(quick: World, tmp_path: Path) -> None:
    quick.start(alice=box())
    ids = quick.ids()
    with world_of(quick.instance, tmp_path / "second", **QUICK) as second:
        second.declare(alice=box(env={"V": "2"}))
        second.daemon.start()
        assert second.daemon.wait_exit() == 1
        (failed,) = second.daemon.events("daemon.failed")
        assert "instance" in failed["error"]
        assert f"pid {quick.daemon.process.pid}" in failed["error"]
        assert second.daemon.cli("apply").returncode == 1
    assert quick.ids() == ids


def test_two_unaware_daemons_leave_each_other_alone(
    quick: World, proxy: FaultProxy, tmp_path: Path
) -> None:
    quick.start(alice=web(), mine=box())
    ours = quick.ids()
    # By another address, as from another host or network namespace.
    with world_of(quick.instance, tmp_path / "second", **QUICK, DOCKER_HOST=proxy.host) as second:
        second.daemon.env["RECONCILER_PORT_RANGE"] = quick.instance.env()["RECONCILER_PORT_RANGE"]
        second.declare(alice=web(env={"V": "2"}), theirs=box())
        second.daemon.start()
        second.daemon.wait_event("owner.conflict")
        quick.daemon.wait_event("owner.conflict")
        second.wait_error("alice", "stop the daemon that created it")
        second.wait(lambda: second.rows()["theirs"]["status"] == "RUNNING")
        theirs = second.id("theirs")
        # A second lost container is made again; nothing of the other's moves meanwhile.
        quick.docker.rm(quick.name("mine"))
        quick.wait(lambda: quick.id("mine") not in {None, ours[quick.name("mine")]})
        quick.wait(lambda: quick.rows()["mine"]["status"] == "RUNNING")
        del ours[quick.name("mine")]
        assert ours.items() <= quick.ids().items()
        assert second.id("theirs") == theirs
        assert len(quick.daemon.events("owner.conflict")) == 1
        assert len(second.daemon.events("owner.conflict")) == 1
        assert not quick.daemon.events("garbage.found")
        assert not second.daemon.events("garbage.found")
        note = quick.daemon.cli("status").stdout
        assert "another daemon uses instance" in note
