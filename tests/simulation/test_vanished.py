"""A dependency of a sandbox disappears, and may return."""

from typing import Any

import pytest

from reconciler.telemetry import events
from tests.simulation.stage import PLAIN, PREFIX, Stage

HOUR = 3600.0
NETWORK = {**PLAIN, "network": {"mode": "agents"}, "ports": []}
SIDECAR = {**PLAIN, "network": {"mode": f"container:{PREFIX}sidecar"}, "ports": []}
DEVICE = {**PLAIN, "resources": {"devices": ["/dev/kvm"]}}


def identity(stage: Stage) -> tuple[Any, ...]:
    """Return what a replacement keeps."""
    seen = stage.seen("alice")
    return seen.session_key, seen.ports, seen.volumes


async def test_pruned_and_recreated_network(stage: Stage):
    stage.host.add_network("agents")
    await stage.converge({"alice": {"spec": "net"}}, net=NETWORK)
    former, kept = stage.seen("alice").id, identity(stage)
    await stage.converge({"alice": {"spec": "net", "state": "stopped"}}, net=NETWORK)
    stage.host.remove_network("agents")
    stage.host.add_network("agents")
    await stage.edit({"alice": {"spec": "net"}}, net=NETWORK)
    await stage.after(15)
    assert stage.phases() == {"alice": "running"}
    assert stage.seen("alice").id != former
    assert identity(stage) == kept
    assert stage.row("alice")["status"] == "RUNNING"
    assert len(stage.notes.logged(events.VolumeCreated)) == 1


async def test_network_missing_for_hours(stage: Stage):
    stage.host.add_network("agents")
    await stage.converge({"alice": {"spec": "net"}}, net=NETWORK)
    stage.host.kill(f"{PREFIX}alice")
    stage.host.remove_network("agents")
    before = len(stage.engine.calls)
    await stage.after(3 * HOUR)
    row = stage.row("alice")
    assert (row["status"], row["reason"]) == ("ERROR", "network agents not found")
    assert row["next"] == "network agents not found"
    assert len(stage.engine.calls) - before < 3 * 60 * 10
    stage.host.add_network("agents")
    await stage.after(65)
    assert stage.phases() == {"alice": "running"}
    assert len(stage.notes.logged(events.SandboxRecovered)) == 1


async def test_recreated_sidecar(stage: Stage):
    stage.host.add_container(f"{PREFIX}sidecar")
    await stage.converge({"alice": {"spec": "side"}}, side=SIDECAR)
    kept = identity(stage)
    stage.host.remove(f"{PREFIX}sidecar")
    stage.host.kill(f"{PREFIX}alice")
    await stage.after(HOUR)
    assert stage.row("alice")["status"] == "ERROR"
    stage.host.add_container(f"{PREFIX}sidecar")
    await stage.after(65)
    assert stage.phases()["alice"] == "running"
    assert identity(stage) == kept


async def test_device_unplugged_for_hours_recovers(stage: Stage):
    await stage.converge({"alice": {"spec": "device"}}, device=DEVICE)
    former = stage.seen("alice").id
    stage.host.missing.add("/dev/kvm")
    stage.host.kill(f"{PREFIX}alice")
    before = len(stage.engine.calls)
    await stage.after(3 * HOUR)
    assert stage.row("alice")["status"] == "ERROR"
    assert "gathering device information" in stage.row("alice")["reason"]
    assert len(stage.notes.logged(events.SandboxCreated)) <= 10
    assert len(stage.engine.calls) - before < 3 * 60 * 10
    assert stage.seen("alice").id == former
    assert len(stage.host.volumes) == 1
    stage.host.missing.discard("/dev/kvm")
    await stage.after(65)
    assert stage.phases() == {"alice": "running"}


@pytest.mark.parametrize("policy", ["missing", "never"])
async def test_an_image_that_was_removed_under_a_stopped_container(stage: Stage, policy: str):
    plain = {**PLAIN, "pull": policy}
    await stage.converge({"alice": "stopped"}, plain=plain)
    stage.host.images.clear()
    await stage.converge({"alice": "running"}, plain=plain)
    assert stage.phases() == {"alice": "running"}
    stage.host.remove(f"{PREFIX}alice")
    await stage.after(HOUR)
    assert stage.row("alice")["status"] == "ERROR"
    assert stage.engine.count("pull") <= 80
    stage.host.images.add(PLAIN["image"])
    await stage.after(65)
    assert stage.phases() == {"alice": "running"}
