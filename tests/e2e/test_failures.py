"""Failing steps: the cause is reported, running sandboxes continue, and no other sandbox waits."""

import socket

import pytest

from tests.e2e.world import World, box, get, web

ABSENT = "localhost:1/no-such-image:latest"


def test_an_image_that_does_not_exist(world: World) -> None:
    world.start(old=box())
    former = world.id("old")
    world.declare(
        old=box(image=ABSENT),
        never=box(image=ABSENT, pull="never"),
        missing=box(image=ABSENT),
        good=box(),
    )
    world.wait_error("never", "No such image")
    world.wait_error("missing", ABSENT)
    world.wait_reason("old", ABSENT)
    assert (world.id("old"), world.state("old")) == (former, "running")
    world.wait(lambda: world.state("good") == "running")
    assert set(world.names()) == {"old", "good"}
    world.declare(old=box(), never=box(), missing=box(), good=box())
    world.converge("old", "never", "missing", "good")
    assert world.id("old") == former


def test_a_mount_with_a_missing_source(world: World) -> None:
    world.start(old=box())
    former = world.id("old")
    mounts = [{"host_path": "/no/such/folder", "container_path": "/data"}]
    world.declare(old=box(mounts=mounts), new=box(mounts=mounts))
    world.wait_error("new", "/no/such/folder")
    world.wait_reason("old", "/no/such/folder")
    assert (world.id("old"), world.state("old")) == (former, "running")
    assert world.names() == ["old"]


@pytest.mark.parametrize("state", ["running", "paused"])
def test_an_unstartable_replacement_restores_the_old_container(world: World, state: str) -> None:
    world.start(alice=web(state))
    former, key = world.id("alice"), world.key("alice")
    world.declare(alice=web(state, init=False, command=["no-such-program"]))
    world.wait(lambda: "no-such-program" in world.row("alice")["reason"])
    world.wait(lambda: world.ids() == {world.name("alice"): former})
    world.wait(lambda: world.state("alice") == state)
    world.daemon.wait_event("sandbox.rolled_back", sandbox="alice")
    assert world.key("alice") == key
    world.wait_status(alice=state.upper())
    assert "no-such-program" in world.row("alice")["reason"]
    world.declare(alice=web(state))
    world.converge("alice")
    assert world.id("alice") == former


def test_a_foreign_container_with_the_sandbox_name(world: World, foreign: list[str]) -> None:
    foreign.append(world.name("alice"))
    theirs = world.add_container(world.name("alice"))
    world.declare(alice=box(), bob=box())
    world.daemon.start()
    world.wait_error("alice", world.name("alice"))
    world.wait(lambda: world.row("bob")["status"] == "RUNNING")
    assert world.docker.inspect(theirs)["State"]["Status"] == "created"
    world.docker.rm(theirs)
    world.converge("alice", "bob")


def test_a_foreign_container_with_our_prefix_is_left_alone(
    world: World, foreign: list[str]
) -> None:
    world.daemon.env["RECONCILER_GC_GRACE"] = "0s"
    foreign.append(world.name("stranger"))
    theirs = world.add_container(world.name("stranger"))
    ours = world.add_container(world.name("orphan"), sandbox="orphan")
    world.start(alice=box())
    world.daemon.wait_event("gc.held")
    assert world.daemon.cli("gc", "--allow-mass-delete").returncode == 0
    world.wait(lambda: ours not in world.ids().values())
    assert world.docker.inspect(theirs)["State"]["Status"] == "created"


def test_a_host_port_in_use_is_replaced(world: World) -> None:
    world.start(alice=web("stopped"))
    former, key, port = str(world.id("alice")), world.key("alice"), world.ports("alice")[8000]
    with socket.create_server(("127.0.0.1", port)):
        world.declare(alice=web())
        replaced = world.daemon.wait_event("port.replaced", sandbox="alice")
        world.wait_replaced("alice", former)
    assert replaced["old_port"] == port
    assert world.ports("alice")[8000] == replaced["port"] != port
    assert world.key("alice") == key
    assert "A sandbox answers" in get(f"http://127.0.0.1:{replaced['port']}/")
    assert world.row("alice")["exposed_urls"][0]["port"] == replaced["port"]


def listener_on(port: int) -> socket.socket | None:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        return None


def test_a_port_taken_during_downtime_is_replaced(world: World) -> None:
    world.start(alice=web())
    port = world.ports("alice")[8000]
    world.daemon.kill9()
    world.docker.kill(world.name("alice"))
    # Its port is free only once the engine has taken its network down.
    with world.daemon.wait_until(lambda: listener_on(port)):
        world.daemon.start()
        world.daemon.wait_event("port.replaced", sandbox="alice")
        world.converge("alice")
    assert world.ports("alice")[8000] != port


def test_an_unhealthy_sandbox_is_restarted(world: World) -> None:
    health = {"path": "/health", "startup_grace": "1s", "interval": "100ms", "failures": 2}
    world.start(alice=web(health=health))
    former, started = world.id("alice"), world.inspect("alice")["State"]["StartedAt"]
    world.run_in("alice", "mv /www/health /www/aside")
    world.daemon.wait_event("sandbox.unhealthy", sandbox="alice")
    world.wait(lambda: world.row("alice")["restarts"] >= 1)
    world.run_between_restarts("alice", "test -e /www/health || mv /www/aside /www/health")
    world.converge("alice")
    assert world.id("alice") == former
    assert world.inspect("alice")["State"]["StartedAt"] != started


def test_a_hanging_sandbox_delays_no_other(world: World) -> None:
    hung = ["sh", "-c", "trap '' TERM; while true; do sleep 1; done"]
    world.start(hung=box(command=hung, init=False, stop_timeout="1m"), bob=box("stopped"))
    world.declare(
        hung=box("stopped", command=hung, init=False, stop_timeout="1m"),
        bob=box(),
        carol=web(),
    )
    world.wait(lambda: world.state("bob") == world.state("carol") == "running")
    world.wait(lambda: world.row("carol")["status"] == "RUNNING")
    assert world.state("hung") == "running"
    world.docker.kill(world.name("hung"))
    world.converge("hung", "bob", "carol")


def test_a_hanging_probe_delays_no_other(world: World) -> None:
    mute = ["sh", "-c", "nc -ll -p 8000 -e sleep 1000"]
    slow = {"path": "/", "timeout": "30s", "interval": "100ms"}
    records = {f"mute-{number}": web(command=mute, health=slow) for number in range(3)}
    world.declare(**records, good=web())
    world.daemon.start()
    world.wait_status(**dict.fromkeys(records, "STARTING"), good="RUNNING")
