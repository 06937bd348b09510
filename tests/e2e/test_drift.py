"""Changes that others make to containers and volumes, and how the daemon undoes them."""

import time
from typing import Any, Literal

import pytest

from tests.e2e.world import World, box, get, web
from tests.harness import faults
from tests.harness.docker import DockerError
from tests.harness.faults import Request, matching
from tests.harness.proxy import FaultProxy

ENDS = ("die", "start")
CRASH = ["sh", "-c", "echo the disk is on fire; exit 7"]


def test_a_paused_container_is_resumed_after_the_grace(world: World) -> None:
    world.daemon.env["RECONCILER_FOREIGN_PAUSE_GRACE"] = "2s"
    world.start(alice=box())
    since = time.time()
    world.docker.pause(world.name("alice"))
    world.daemon.wait_event("sandbox.paused_by_others", sandbox="alice")
    world.daemon.wait_event("sandbox.resumed", sandbox="alice")
    world.wait(lambda: world.state("alice") == "running")
    told = world.docker.events(since, time.time(), container=[str(world.id("alice"))])
    at = {event["Action"]: event["timeNano"] / 1e9 for event in told}
    assert at["unpause"] - at["pause"] >= 1.9


def test_a_container_is_not_resumed_during_a_commit(world: World) -> None:
    world.start(alice=box())
    repository = f"{world.instance.prefix}snapshot"
    world.run_in("alice", "dd if=/dev/zero of=/tmp/big bs=1M count=100")
    since = time.time()
    world.docker.call("POST", "/commit", container=world.name("alice"), repo=repository, pause=True)
    world.docker.rm_image(f"{repository}:latest")
    seen = world.docker.events(since, time.time(), container=[str(world.id("alice"))])
    order = [event["Action"] for event in seen if event["Action"] in {"unpause", "commit"}]
    assert order == ["commit", "unpause"]
    world.wait(lambda: world.state("alice") == "running")
    world.converge("alice")


def test_a_restart_by_others_is_counted(world: World) -> None:
    world.start(alice=box())
    former = world.id("alice")
    world.docker.restart(world.name("alice"))
    world.wait(lambda: world.row("alice")["restarts"] >= 1)
    world.converge()
    assert world.id("alice") == former
    assert world.row("alice")["restarts"] == 1


def test_a_pruned_workspace_is_an_error(world: World) -> None:
    world.start(alice=box())
    world.declare(alice=box("stopped"))
    world.wait_status(alice="STOPPED")
    world.daemon.kill9()
    world.docker.rm(world.name("alice"))
    world.docker.rm_volume(world.instance.volume("alice"))
    world.daemon.start()
    lost = world.daemon.wait_event("volume.lost", sandbox="alice")
    assert (lost["level"], lost["volume"]) == ("error", world.instance.volume("alice"))
    world.converge("alice")
    world.declare(alice=box())
    world.wait_status(alice="RUNNING")
    assert "was removed" in world.row("alice")["reason"]
    world.declare(alice=box(env={"SEEN": "yes"}))
    world.wait(lambda: world.row("alice")["reason"] == "")


def test_a_resumed_container_is_paused_again(world: World) -> None:
    world.start(alice=box("paused"))
    world.docker.unpause(world.name("alice"))
    world.wait(lambda: world.state("alice") == "paused")


def test_a_started_container_is_stopped_again(world: World) -> None:
    world.start(alice=box("stopped"))
    world.docker.start(world.name("alice"))
    world.wait(lambda: world.state("alice") == "exited")


def pauses_of(world: World, container: str) -> list[float]:
    """The seconds from each end of a container to the start that followed."""
    seen = world.docker.events(0, time.time(), container=[container], event=list(ENDS))
    times = {what: [e["timeNano"] / 1e9 for e in seen if e["Action"] == what] for what in ENDS}
    return [start - end for end, start in zip(times["die"], times["start"][1:], strict=False)]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_killed_container_is_started_again(world: World, end: str) -> None:
    world.start(alice=web())
    former = world.id("alice")
    getattr(world.docker, end)(world.name("alice"))
    died = world.daemon.wait_event("sandbox.died", sandbox="alice")
    assert died["exit_code"] == {"stop": 0, "kill": 137}[end]
    world.converge()
    assert world.id("alice") == former
    assert world.row("alice")["restarts"] == 1


def test_a_removed_container_is_recreated_with_key_ports_and_workspace(world: World) -> None:
    world.start(alice=web())
    former, key, ports = str(world.id("alice")), world.key("alice"), world.ports("alice")
    world.run_in("alice", "echo data > /workspace/file")
    world.docker.rm(world.name("alice"))
    world.wait_replaced("alice", former)
    assert (world.key("alice"), world.ports("alice")) == (key, ports)
    assert world.run_in("alice", "cat /workspace/file") == "data"


def test_a_renamed_container_gets_its_name_back(world: World) -> None:
    world.start(alice=box(), bob=box())
    ids = world.ids()
    world.docker.rename(world.name("alice"), f"{world.instance.prefix}somebody")
    world.wait(lambda: world.ids() == ids)


def test_swapped_names_are_swapped_back(world: World) -> None:
    world.start(alice=box(), bob=box())
    ids = world.ids()
    names = [world.name("alice"), f"{world.instance.prefix}aside", world.name("bob")]
    world.daemon.kill9()
    world.docker.rename(names[0], names[1])
    world.docker.rename(names[2], names[0])
    world.docker.rename(names[1], names[2])
    world.daemon.start()
    world.wait(lambda: world.ids() == ids)
    world.converge()


def test_a_crash_loop_is_reported_with_its_log_and_backs_off(world: World) -> None:
    slow = {"backoff": "300ms", "max_backoff": "1m"}
    world.start(bob=box())
    world.declare(alice=box(command=CRASH, restart=slow), bob=box())
    row = world.wait_error("alice", "exit code 7", "the disk is on fire")
    assert row["last_exit"]["exit_code"] == 7
    world.wait(lambda: world.row("alice")["restarts"] >= 3)
    # At once, then after 300 ms, then after 600 ms, each less 10 % at most.
    pauses = pauses_of(world, str(world.id("alice")))
    assert pauses[1] >= 0.27
    assert pauses[2] >= 0.54
    assert world.row("bob")["status"] == "RUNNING"
    world.declare(alice=box(), bob=box())
    world.converge("alice", "bob")


def test_a_crash_is_reported_and_restarted(world: World) -> None:
    script = "echo about to fail; while ! test -e /tmp/crash; do sleep 0.1; done; exit 3"
    world.start(alice=box(command=["sh", "-c", script]))
    world.run_in("alice", "touch /tmp/crash")
    row = world.wait_error("alice", "exit code 3", "about to fail")
    assert row["last_exit"]["log_tail"][-1] == "about to fail"


def test_a_removed_container_and_volume_are_recreated(world: World) -> None:
    world.start(alice=box(user="agent"))
    former = str(world.id("alice"))
    # Else the daemon may make the container again before the volume is gone, which then is in use.
    with world.daemon.frozen():
        world.docker.rm(world.name("alice"), volumes=True)
        world.docker.rm_volume(world.instance.volume("alice"))
    world.wait_replaced("alice", former)
    assert world.volumes() == {"alice"}
    assert world.run_in("alice", "touch /workspace/file; stat -c %U /workspace") == "agent"


def test_a_volume_removed_during_downtime_is_recreated(world: World) -> None:
    world.start(alice=box())
    world.daemon.kill9()
    world.docker.rm(world.name("alice"))
    world.docker.rm_volume(world.instance.volume("alice"))
    world.daemon.start()
    world.converge("alice")
    assert world.state("alice") == "running"
    assert world.volumes() == {"alice"}


def test_a_second_container_with_our_labels_is_left_alone(world: World, foreign: list[str]) -> None:
    world.start(alice=box())
    former = world.id("alice")
    name = f"{world.instance.prefix}second"
    foreign.append(name)
    second = world.add_container(name, sandbox="alice")
    world.declare(alice=box(env={"COLOUR": "red"}))
    world.wait_replaced("alice", str(former))
    assert second in world.ids().values()
    assert world.docker.inspect(second)["Name"] == f"/{name}"


def test_changes_during_downtime_are_undone(world: World) -> None:
    world.start(alice=box(), bob=box("paused"), carol=box("stopped"))
    ids = world.ids()
    world.daemon.terminate()
    world.docker.kill(world.name("alice"))
    world.docker.unpause(world.name("bob"))
    world.docker.start(world.name("carol"))
    world.daemon.start()
    world.wait_status(alice="RUNNING", bob="PAUSED", carol="STOPPED")
    assert world.ids() == ids


def limits_of(world: World) -> dict[str, Any]:
    """What `docker update` changes."""
    names = ("RestartPolicy", "Memory", "MemorySwap", "NanoCpus", "PidsLimit", "CpusetCpus")
    host = world.inspect("alice")["HostConfig"]
    return {name: host[name] for name in names}


LIMITED = {"resources": {"memory": "64m", "cpus": 0.5, "pids": 64}}
CHANGES = {
    "RestartPolicy": {"Name": "always"},
    "Memory": 32 << 20,
    "MemorySwap": 32 << 20,
    "NanoCpus": 10**8,
    "PidsLimit": 20,
}


def docker_update(world: World, **changes: Any) -> None:
    world.docker.call("POST", f"/containers/{world.name('alice')}/update", changes)


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_limits_changed_by_others_are_restored(world: World, state: str) -> None:
    world.start(alice=box(**LIMITED))
    world.declare(alice=box(state, **LIMITED))
    world.converge("alice")
    made, started = limits_of(world), world.inspect("alice")["State"]["StartedAt"]
    docker_update(world, **CHANGES)
    world.wait(lambda: limits_of(world) == made)
    world.converge("alice")
    assert world.inspect("alice")["State"]["StartedAt"] == started
    fields = {event["field"] for event in world.daemon.events("sandbox.drifted", "alice")}
    assert fields == {"restart_policy", "memory", "memory_swap", "nano_cpus", "pids"}
    assert len(world.daemon.events("sandbox.updated", "alice")) == 1


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_kill_during_an_update_keeps_the_desired_limits(
    proxied: World, proxy: FaultProxy, side: Literal["before", "after"]
) -> None:
    world = proxied
    world.start(alice=box(**LIMITED))
    made = limits_of(world)

    def is_update(request: Request) -> bool:
        return bool(matching("POST", ".*/update")(request))

    def die(request: Request) -> None:
        if is_update(request):
            world.daemon.kill9()

    proxy.fault(is_update, faults.drop() if side == "before" else faults.cut())
    (proxy.on_request if side == "before" else proxy.on_response)(die)
    docker_update(world, **CHANGES)
    world.daemon.wait_until(lambda: not world.daemon.running)
    proxy.clear()
    world.daemon.start()
    world.wait(lambda: limits_of(world) == made)
    world.converge("alice")


def test_a_restart_policy_set_by_others_is_removed(world: World) -> None:
    """Docker reports an error where the container ends during the change, and may still keep it.

    So the change is made again until it is accepted, and races the daemon, which sets it back.
    """
    slow = {"backoff": "500ms", "max_backoff": "2s"}
    world.start(bob=box())
    world.declare(alice=box(command=CRASH, restart=slow), bob=box())
    world.wait_error("alice", "exit code 7")

    def updated() -> bool:
        try:
            docker_update(world, RestartPolicy={"Name": "always"})
        except DockerError:
            return False  # it ended just then
        return True

    world.wait(updated)
    world.daemon.wait_event("sandbox.updated", sandbox="alice")
    world.wait(lambda: world.inspect("alice")["HostConfig"]["RestartPolicy"]["Name"] == "no")
    before = world.row("alice")["restarts"]
    world.wait(lambda: world.row("alice")["restarts"] > before)
    world.declare(alice=box(), bob=box())
    world.converge("alice", "bob")


def test_a_disconnected_network_is_connected_again(world: World) -> None:
    health = {"path": "/health", "interval": "500ms", "startup_grace": "5s", "failures": 2}
    world.start(alice=web(health=health), bob=box())
    container, ports = world.id("alice"), world.ports("alice")
    body = {"Container": world.name("alice"), "Force": True}
    world.docker.call("POST", "/networks/bridge/disconnect", body)
    line = world.daemon.wait_event("sandbox.drifted", "alice")
    assert (line["field"], line["old"]) == ("network", "bridge")
    world.daemon.wait_event("sandbox.updated", "alice")
    world.wait_status(alice="RUNNING", bob="RUNNING")
    assert "bridge" in world.inspect("alice")["NetworkSettings"]["Networks"]
    (port,) = ports.values()
    assert get(f"http://127.0.0.1:{port}/health")
    assert (world.id("alice"), world.ports("alice")) == (container, ports)
