"""The first start: everything that the desired file declares exists."""

import json
from collections.abc import Iterator

import pytest

from scripts.image import TEST_IMAGE
from tests.e2e.world import KEY, World, box, get, world_on
from tests.harness.docker import Docker

DESIRED = f"""\
version: 1
specs:
  web:
    image: {TEST_IMAGE}
    command: [serve, "8000", "8001"]
    env: {{COLOUR: blue}}
    user: agent
    working_dir: /workspace/project/src
    workspace: {{path: /workspace, retain: 1h}}
    ports:
      - {{name: WEB, container_port: 8000}}
      - {{name: DOCS, container_port: 8001}}
    health: {{path: /health, port: WEB, interval: 500ms}}
    resources: {{cpus: 0.5, memory: 64m, pids: 50}}
    security: {{cap_drop: [ALL], no_new_privileges: true}}
    stop_timeout: 1s
sandboxes:
  alice: {{spec: web}}
  bob: {{spec: web, state: paused}}
  carol: {{spec: web, state: stopped}}
  pool: {{spec: web, replicas: 2, env: {{COLOUR: red}}}}
"""
STATES = {
    "alice": ("RUNNING", "running"),
    "bob": ("PAUSED", "paused"),
    "carol": ("STOPPED", "created"),
    "pool-1": ("RUNNING", "running"),
    "pool-2": ("RUNNING", "running"),
}
FOLDER = "/workspace/project"


@pytest.fixture(scope="module")
def started(engine: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world_on(engine, tmp_path_factory.mktemp("home")) as world:
        world.daemon.write(DESIRED)
        world.daemon.start()
        world.converge(*STATES)
        yield world


def test_every_sandbox_is_as_desired(started: World) -> None:
    assert started.statuses() == {name: status for name, (status, _) in STATES.items()}
    assert {name: started.state(name) for name in STATES} == {
        name: state for name, (_, state) in STATES.items()
    }


def test_nothing_else_is_created(started: World) -> None:
    assert started.names() == sorted(STATES)
    assert started.volumes() == set(STATES)


def answers(port: int) -> bool:
    try:
        return "A sandbox answers" in get(f"http://127.0.0.1:{port}/")
    except OSError:
        return False


def test_urls_answer_on_loopback_only(started: World) -> None:
    row = started.row("alice")
    assert [url["name"] for url in row["exposed_urls"]] == ["WEB", "DOCS"]
    for url in row["exposed_urls"]:
        assert url["port"] in started.instance.ports
        # Only the first of them is probed.
        started.wait(lambda port=url["port"]: answers(port))
    bindings = started.inspect("alice")["HostConfig"]["PortBindings"]
    assert {b["HostIp"] for bound in bindings.values() for b in bound} == {"127.0.0.1"}


def test_no_two_sandboxes_share_a_port(started: World) -> None:
    ports = [port for name in STATES for port in started.ports(name).values()]
    assert len(set(ports)) == 2 * len(STATES)


def test_the_environment(started: World) -> None:
    env = started.env("alice")
    assert (env["WEB"], env["DOCS"], env["COLOUR"]) == ("8000", "8001", "blue")
    assert started.env("pool-1")["COLOUR"] == "red"
    assert env["OH_WEBHOOKS_0_BASE_URL"] == "http://host.docker.internal:3000/api/v1/webhooks"
    assert len({started.key(name) for name in STATES}) == len(STATES)
    assert started.run_in("alice", f"echo ${KEY}") == env[KEY]


def test_labels_name_the_owner(started: World) -> None:
    label = "io.sandbox-reconciler."
    marks = started.inspect("pool-2")["Config"]["Labels"]
    assert marks[f"{label}instance"] == started.instance.name
    assert (marks[f"{label}sandbox"], marks[f"{label}spec"]) == ("pool-2", "web")
    assert marks[f"{label}spec-hash"].startswith("1:")
    volume = started.docker.volumes()[started.instance.volume("pool-2")]["Labels"]
    assert volume[f"{label}instance"] == started.instance.name
    assert volume[f"{label}sandbox"] == "pool-2"


def test_the_user_can_write_from_the_workspace_down_to_the_working_dir(started: World) -> None:
    assert started.run_in("alice", "pwd; id -un") == "/workspace/project/src\nagent"
    started.run_in("alice", "touch file ../file /workspace/file")
    for folder in ("/workspace", "/workspace/project", "/workspace/project/src"):
        assert started.run_in("alice", f"stat -c %U {folder}") == "agent"


def test_limits_reach_the_engine(started: World) -> None:
    host = started.inspect("alice")["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (500_000_000, 64 << 20, 50)
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert host["Init"] is True
    assert host["RestartPolicy"]["Name"] in {"", "no"}


def test_status_and_plan_agree(started: World) -> None:
    status = started.daemon.status()
    assert {row["status"] for row in status["sandboxes"]} == {"RUNNING", "PAUSED", "STOPPED"}
    assert status["engine"]["reachable"] is True
    fields = "id name spec desired status reason exposed_urls created_at container_id restarts"
    assert {*fields.split(), "volumes"} <= set(status["sandboxes"][0])
    plan = started.daemon.cli("plan")
    assert (plan.returncode, plan.stdout) == (0, "in sync\n")
    assert started.daemon.cli("apply").returncode == 0


def test_session_keys_are_shown_only_on_request(started: World) -> None:
    keys = [started.key(name) for name in STATES]
    commands = (
        ["status"],
        ["status", "--json"],
        ["plan", "--json"],
        ["events"],
        ["events", "--json"],
        ["export"],
        ["gc", "--dry-run", "--json"],
        ["logs", "alice"],
    )
    said = [started.daemon.cli(*command) for command in commands]
    assert [done.returncode for done in said] == [0] * len(commands)
    text = "\n".join([*(done.stdout + done.stderr for done in said), *started.daemon.raw])
    assert "alice" in text
    assert not [key for key in keys if key in text]
    shown = json.loads(started.daemon.cli("status", "--json", "--show-secrets").stdout)
    assert {row["session_api_key"] for row in shown["sandboxes"]} == set(keys)


def test_a_workspace_belongs_to_its_user_in_every_notation(world: World) -> None:
    records = {
        "name": box(user="agent"),
        "number": box(user="10001"),
        "both": box(user="10001:10001"),
        "owner": box(workspace={"path": "/workspace", "owner": "10001:10001"}),
    }
    # The image has no such folder, so the engine makes it, for root.
    world.start(**{name: {**record, "working_dir": FOLDER} for name, record in records.items()})
    owners = {name: world.run_in(name, f"stat -c %u /workspace {FOLDER}") for name in records}
    assert owners == dict.fromkeys(records, "10001\n10001")


def test_a_desired_file_that_appears_later_is_read(world: World) -> None:
    world.daemon.start()
    world.daemon.wait_event("daemon.ready")
    world.declare(alice={"spec": "bare"})
    world.converge("alice")
    assert world.state("alice") == "running"
