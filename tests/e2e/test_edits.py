"""Edits of the desired file, and their effects."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.image import TEST_IMAGE
from tests.e2e.world import World, box, document, web
from tests.harness.faults import Request, matching
from tests.harness.proxy import FaultProxy

STATUS = {"running": "RUNNING", "paused": "PAUSED", "stopped": "STOPPED"}
STATES = {"running": {"running"}, "paused": {"paused"}, "stopped": {"created", "exited"}}
OTHER_IMAGE = "reconciler-test-other:latest"


def identity(world: World, sandbox: str) -> tuple[str, dict[int, int]]:
    return world.key(sandbox), world.ports(sandbox)


# --- what an edit replaces, and what it keeps


def edits(tmp_path: Path) -> dict[str, tuple[dict[str, Any], Callable[[World], bool]]]:
    """Each kind of edit that is baked into a container, and how it shows."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_text("seen")
    mount = {"host_path": str(tmp_path / "shared"), "container_path": "/shared", "mode": "ro"}
    return {
        "image": (
            {"image": OTHER_IMAGE},
            # Podman writes the name out.
            lambda w: w.inspect("alice")["Config"]["Image"].endswith(OTHER_IMAGE),
        ),
        "env": ({"env": {"COLOUR": "red"}}, lambda w: w.env("alice")["COLOUR"] == "red"),
        "command": (
            {"command": ["sh", "-c", "serve 8000"]},
            lambda w: w.inspect("alice")["Config"]["Cmd"] == ["sh", "-c", "serve 8000"],
        ),
        "mounts": ({"mounts": [mount]}, lambda w: w.run_in("alice", "cat /shared/file") == "seen"),
        "limits": (
            {"resources": {"memory": "64m"}},
            lambda w: w.inspect("alice")["HostConfig"]["Memory"] == 64 << 20,
        ),
    }


def test_a_replacement_keeps_workspace_key_and_ports(world: World, tmp_path: Path) -> None:
    world.docker.tag(TEST_IMAGE, *OTHER_IMAGE.split(":"))
    world.start(alice=web())
    kept = identity(world, "alice")
    world.run_in("alice", "echo data > /workspace/file")
    for edit, shows in edits(tmp_path).values():
        former = str(world.id("alice"))
        world.declare(alice=web(**edit))
        world.wait_replaced("alice", former)
        assert shows(world)
        assert identity(world, "alice") == kept
        assert world.run_in("alice", "cat /workspace/file") == "data"
        assert world.names() == ["alice"]


def test_an_edit_of_ports_keeps_the_unchanged_leases(world: World) -> None:
    world.start(alice=web())
    key, ports = identity(world, "alice")
    former = str(world.id("alice"))
    more = [{"name": "WEB", "container_port": 8000}, {"name": "DOCS", "container_port": 8001}]
    world.declare(alice=web(ports=more))
    world.wait_replaced("alice", former)
    assert world.key("alice") == key
    assert world.env("alice")["DOCS"] == "8001"
    assert world.ports("alice")[8000] == ports[8000]
    assert set(world.ports("alice")) == {8000, 8001}


def test_an_edit_of_health_or_restart_replaces_nothing(world: World) -> None:
    world.start(alice=web())
    former = world.id("alice")
    health = {"path": "/nothing-there", "startup_grace": "0s", "interval": "100ms", "failures": 2}
    world.declare(alice=web(health=health, restart={"backoff": "1m", "max_backoff": "1m"}))
    world.wait_error("alice", "unhealthy", "404")
    world.declare(alice=web(stop_timeout="2s"))
    world.converge()
    assert world.id("alice") == former


@pytest.mark.parametrize("start", STATUS)
def test_every_state_transition(world: World, start: str) -> None:
    names = {f"to-{end}": end for end in STATUS}
    world.start(**{name: web(start) for name in names})
    ids = world.ids()
    world.declare(**{name: web(end) for name, end in names.items()})
    world.wait_status(**{name: STATUS[end] for name, end in names.items()})
    for name, end in names.items():
        assert world.state(name) in STATES[end]
    assert world.ids() == ids


def test_records_are_added_and_removed(world: World) -> None:
    world.start(alice=box())
    alice = world.id("alice")
    world.declare(alice=box(), bob=box())
    world.converge("alice", "bob")
    world.declare(bob=box())
    world.converge("bob")
    assert world.names() == ["bob"]
    assert alice not in world.ids().values()


def test_a_returning_record_gets_its_workspace_and_key_back(world: World) -> None:
    world.start(alice=web(), bob=box())
    kept = world.key("alice")
    world.run_in("alice", "echo data > /workspace/file")
    world.declare(bob=box())
    world.converge("bob")
    assert world.volumes() == {"alice", "bob"}
    world.declare(alice=web(), bob=box())
    world.converge("alice", "bob")
    assert world.run_in("alice", "cat /workspace/file") == "data"
    assert world.key("alice") == kept
    world.daemon.wait_event("volume.claimed", sandbox="alice")


def test_a_workspace_without_retention_goes_with_its_record(world: World) -> None:
    brief = {"path": "/workspace", "retain": 0}
    world.start(alice=box(workspace=brief), bob=box())
    world.declare(bob=box())
    world.wait(lambda: world.volumes() == {"bob"})
    assert world.names() == ["bob"]


def test_replicas_scale_up_and_down(world: World) -> None:
    world.declare(pool=box(replicas=2))
    world.daemon.start()
    world.converge("pool-1", "pool-2")
    ids = world.ids()
    world.declare(pool=box(replicas=3))
    world.converge("pool-1", "pool-2", "pool-3")
    assert ids.items() < world.ids().items()
    world.declare(pool=box(replicas=1))
    world.converge("pool-1")
    assert world.names() == ["pool-1"]
    assert world.id("pool-1") == ids[world.name("pool-1")]


def test_on_change_next_start_waits_for_the_next_start(world: World) -> None:
    world.start(alice=box(on_change="next-start"))
    former = str(world.id("alice"))
    edited = {"on_change": "next-start", "env": {"COLOUR": "red"}}
    world.declare(alice=box(**edited))
    world.daemon.wait_event("record.changed", sandbox="alice")
    world.converge()
    assert world.id("alice") == former
    world.declare(alice=box("stopped", **edited))
    world.wait_status(alice="STOPPED")
    assert world.id("alice") == former
    world.declare(alice=box(**edited))
    world.wait_replaced("alice", former)
    assert world.env("alice")["COLOUR"] == "red"


def test_on_change_ignore_never_replaces(world: World) -> None:
    world.start(alice=box(on_change="ignore"))
    former = world.id("alice")
    edited = {"on_change": "ignore", "env": {"COLOUR": "red"}}
    for state in ("running", "stopped", "running"):
        world.declare(alice=box(state, **edited))
        world.wait_status(alice=STATUS[state])
    assert world.id("alice") == former


def test_an_edited_env_file_replaces_the_sandbox(world: World, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.env"
    secrets.write_text("COLOUR=blue\n")
    world.start(alice=box(env_file=str(secrets)), bob=box())
    former, bob = str(world.id("alice")), world.id("bob")
    assert world.env("alice")["COLOUR"] == "blue"
    secrets.write_text("COLOUR=red\n")
    world.wait_replaced("alice", former)
    assert world.env("alice")["COLOUR"] == "red"
    assert world.id("bob") == bob


def test_the_newest_edit_wins_during_a_create(proxied: World, proxy: FaultProxy) -> None:
    proxied.start(alice=box(env={"COLOUR": "blue"}))
    former = str(proxied.id("alice"))
    creates = matching("POST", "/containers/create")
    last = proxy.requests[-1].number

    def hold(request: Request) -> None:
        if creates(request):
            changes = ("record.changed", "alice")
            proxied.daemon.wait_until(lambda: len(proxied.daemon.events(*changes)) == 2)

    proxy.on_request(hold)
    proxied.declare(alice=box(env={"COLOUR": "red"}))
    proxy.wait_request(creates, after=last)
    proxied.declare(alice=box(env={"COLOUR": "green"}))
    proxied.wait_replaced("alice", former)
    assert proxied.env("alice")["COLOUR"] == "green"
    assert proxied.names() == ["alice"]
    started = [r.path for r in proxy.seen(matching("POST", ".*/start"))]
    assert len(started) == 2, "the container of the older edit was started, too"


# --- how an edit is saved


def by_rename(desired: Path, text: str) -> None:
    aside = desired.with_name(".desired.yaml.swp")
    aside.write_text(text)
    aside.replace(desired)


def in_place(desired: Path, text: str) -> None:
    desired.write_text(text)


def by_deleting_and_creating(desired: Path, text: str) -> None:
    desired.unlink()
    desired.write_text(text)


def in_halves(desired: Path, text: str) -> None:
    with desired.open("w") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        file.write(text[len(text) // 2 :])


@pytest.mark.parametrize("save", [by_rename, in_place, by_deleting_and_creating, in_halves])
def test_every_way_of_saving_is_noticed(world: World, save: Callable[[Path, str], None]) -> None:
    # A rescan would see it, too, and much later.
    world.daemon.env["RECONCILER_RESCAN_INTERVAL"] = "1h"
    world.start(alice=box("stopped"))
    for state in ("paused", "stopped"):
        save(world.daemon.desired, document(alice=box(state)))
        world.wait_status(alice=STATUS[state])


def test_a_swapped_link_is_noticed(world: World, tmp_path: Path) -> None:
    world.daemon.env["RECONCILER_RESCAN_INTERVAL"] = "1h"
    mount = tmp_path / "mount"
    world.daemon.env["RECONCILER_DESIRED"] = str(mount / "desired.yaml")
    swap(mount, "1", alice=box("stopped"))
    world.daemon.start()
    world.wait_status(alice="STOPPED")
    swap(mount, "2", alice=box("stopped"), bob=box("stopped"))
    world.converge("alice", "bob")


def swap(mount: Path, version: str, **sandboxes: Any) -> None:
    """As Kubernetes does it: the file is a link into a folder that is itself a link."""
    (mount / version).mkdir(parents=True)
    (mount / version / "desired.yaml").write_text(document(**sandboxes))
    if not (mount / "desired.yaml").is_symlink():
        (mount / "desired.yaml").symlink_to("..data/desired.yaml")
    (mount / "..new").symlink_to(version)
    (mount / "..new").replace(mount / "..data")


def test_a_folder_of_desired_files(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "desired.d"
    folder.mkdir()
    world.daemon.env["RECONCILER_DESIRED"] = str(folder)
    (folder / "alice.yaml").write_text(document(alice=box("stopped")))
    world.daemon.start()
    world.converge("alice")
    records = "version: 1\nsandboxes:\n  bob: {spec: box, state: stopped}\n"
    (folder / "bob.yaml").write_text(records)
    world.converge("alice", "bob")
    (folder / "bob.yaml").unlink()
    world.converge("alice")
    shutil.rmtree(folder)
    world.wait(lambda: world.ask("/v1/status")["desired"]["errors"])
    assert world.names() == ["alice"]
