"""Commands without a daemon: this process queries the engine, and changes only what it must."""

import json

import pytest

from tests.cli.cli import GOOD, Cli
from tests.harness.daemon import Daemon
from tests.harness.docker import labels
from tests.harness.instance import Instance
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.engine


def test_plan_and_apply_from_nothing(engine_cli: Cli, instance: Instance) -> None:
    cli = engine_cli
    planned = cli("plan")
    assert planned.returncode == 2
    assert (
        f"alice: create {instance.container('alice')} (the container does not exist)"
        in planned.stdout
    )
    assert not (cli.home / "state").exists()

    applied = cli("apply")
    assert (applied.returncode, applied.stdout) == (0, "converged: 3 sandboxes are as desired\n")
    assert "alice: MISSING" in applied.stderr
    assert "0/3 as desired" in applied.stderr
    assert instance.docker.state(instance.container("pool-2")) == "running"

    assert (cli("plan").returncode, cli("plan").stdout) == (0, "in sync\n")
    assert json.loads(cli("plan", "--json").stdout)["changes"] == []
    assert cli("apply", "--json").returncode == 0
    history = [entry["event"] for entry in json.loads(cli("events", "alice", "--json").stdout)]
    assert history[0] == "record.added"
    assert "sandbox.started" in history


def test_status_of_all_and_of_one(engine_cli: Cli, instance: Instance) -> None:
    engine_cli("apply")
    done = engine_cli("status")
    assert done.returncode == 0
    assert "no daemon is running" in done.stderr
    header, first, *_ = done.stdout.splitlines()
    assert header.split() == ["SANDBOX", "DESIRED", "STATUS", "RESTARTS", "AGE", "URLS", "REASON"]
    assert first.split()[:3] == ["alice", "running", "RUNNING"]

    done = engine_cli("status", instance.container("alice"), "--json")
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["engine"]["reachable"]
    (alice,) = answer["sandboxes"]
    assert alice.keys() >= {
        *("id", "name", "spec", "desired", "status", "reason", "exposed_urls"),
        *("created_at", "container_id", "restarts", "volumes"),
    }
    assert "session_api_key" not in alice
    shown = json.loads(engine_cli("status", "alice", "--json", "--show-secrets").stdout)
    key = shown["sandboxes"][0]["session_api_key"]
    assert key == instance.docker.env(instance.container("alice"))["OH_SESSION_API_KEYS_0"]

    done = engine_cli("status", "nobody")
    assert done.returncode == 1
    assert "no sandbox is named nobody" in done.stderr


def test_apply_applies_everything_but_the_invalid_record(
    engine_cli: Cli, instance: Instance
) -> None:
    engine_cli.desired.write_text(GOOD + "  bob: {spec: nope}\n")
    done = engine_cli("apply")
    assert done.returncode == 1
    assert f"{engine_cli.desired}:7:" in done.stderr
    assert "converged" not in done.stdout
    assert instance.docker.state(instance.container("alice")) == "running"


def test_apply_reports_which_sandbox_is_not_as_desired(engine_cli: Cli) -> None:
    text = GOOD.replace(
        "sandboxes:\n",
        "  bad: {image: 'not-here:1', pull: never}\nsandboxes:\n  bob: {spec: bad}\n",
    )
    engine_cli.desired.write_text(text)
    done = engine_cli("apply", "--timeout", "20s")
    assert done.returncode == 1
    last = [line for line in done.stderr.splitlines() if "not as desired" in line]
    assert len(last) == 1
    assert last[0].startswith("bob: not as desired: ERROR: ")
    assert "not-here:1" in last[0]


def test_mass_deletion_awaits_confirmation(engine_cli: Cli, instance: Instance) -> None:
    engine_cli.desired.write_text(GOOD.replace("replicas: 2", "replicas: 4"))
    engine_cli("apply")
    engine_cli.desired.write_text(GOOD.split("sandboxes:", maxsplit=1)[0] + "sandboxes: {}\n")
    planned = engine_cli("plan")
    assert planned.returncode == 2
    assert "in sync" not in planned.stdout
    done = engine_cli("apply")
    assert done.returncode == 1
    assert "alice, pool-1" in done.stderr
    assert "reconciler apply --allow-mass-delete" in done.stderr
    assert len(instance.docker.names(instance.name)) == 5
    assert engine_cli("apply", "--allow-mass-delete").returncode == 0
    assert instance.docker.names(instance.name) == []


def test_gc_removes_orphans_and_changes_nothing_else(engine_cli: Cli, instance: Instance) -> None:
    stray = instance.container("stray")
    docker = instance.docker
    docker.run(stray, "sleep", "1000", labels=labels(instance.name, "stray"))
    engine_cli("apply")
    docker.stop(instance.container("alice"))
    asked = engine_cli("gc", "--dry-run", "--json", RECONCILER_GC_GRACE="10m")
    (row,) = json.loads(asked.stdout)
    assert (row["kind"], row["name"], row["due"]) == ("container", stray, False)
    # Its grace period starts when it is first seen, and that time is stored.
    engine_cli("gc", RECONCILER_GC_GRACE="10m")
    assert docker.exists(stray)
    # Another database may have created it, so the guard blocks its removal.
    assert engine_cli("gc", RECONCILER_GC_GRACE="1ms").returncode == 0
    assert docker.exists(stray)
    done = engine_cli("gc", "--allow-mass-delete", RECONCILER_GC_GRACE="1ms")
    assert (done.returncode, stray in done.stdout) == (0, True)
    assert not docker.exists(stray)
    assert docker.state(instance.container("alice")) == "exited"
    assert engine_cli("gc", "--dry-run").stdout == "no orphans\n"


def test_logs_of_a_container(engine_cli: Cli) -> None:
    engine_cli.desired.write_text(
        GOOD.replace('[sleep, "1000"]', '[sh, -c, "echo one; echo two; sleep 1000"]')
    )
    engine_cli("apply")
    wait_until(lambda: engine_cli("logs", "alice").stdout == "one\ntwo\n")
    assert engine_cli("logs", "alice", "--tail", "1").stdout == "two\n"
    done = engine_cli("logs", "nobody")
    assert done.returncode == 1
    assert done.stderr == (
        "reconciler: no sandbox is named nobody; list them with `reconciler status`\n"
    )


def test_apply_respects_the_lock_of_a_hidden_daemon(engine_cli: Cli, daemon: Daemon) -> None:
    """A daemon with another runtime directory is found by its lock."""
    daemon.start().wait_event("daemon.ready")
    done = engine_cli("apply")
    assert done.returncode == 1
    assert f"pid {daemon.process.pid}" in done.stderr


def test_doctor_passes_on_a_good_host(engine_cli: Cli, instance: Instance) -> None:
    done = engine_cli("doctor", "--json")
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert findings.keys() >= {"engine", "desired file", "state directory", "host ports"}
    bad = [f for f in findings.values() if f["verdict"] == "FAIL"]
    assert (done.returncode, bad) == (0, [])
    assert any(check.startswith("host from a sandbox") for check in findings)
    assert instance.docker.names(instance.name) == []
    assert engine_cli("doctor").stdout.startswith("OK   engine: ")


def test_doctor_prints_a_fix_for_each_failure(engine_cli: Cli) -> None:
    engine_cli.desired.write_text("version: 1\nnonsense: 1\n")
    done = engine_cli(
        "doctor", DOCKER_HOST="unix:///nobody.sock", RECONCILER_DISK_MIN_FREE="999999g"
    )
    assert done.returncode == 1
    assert done.stdout.count("FAIL ") == 3
    assert done.stdout.count("-> ") == 3
    assert "reconciler check" in done.stdout
