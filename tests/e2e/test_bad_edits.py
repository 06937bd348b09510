"""Wrong edits, and edits that delete more than intended, delete nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.world import World, box, document


@pytest.fixture
def six(world: World) -> World:
    """Six sandboxes, created and not started: enough for the mass-delete guard."""
    records = {f"s{number}": box("stopped") for number in range(6)}
    world.start(**records)
    return world


def awaiting(world: World) -> list[str]:
    answer = world.ask("/v1/status")
    return list(answer["desired"]["awaiting_confirmation"]) if answer else []


def test_an_unparsable_file_changes_nothing(world: World) -> None:
    world.start(alice=box(), bob=box("stopped"))
    ids = world.ids()
    good = world.daemon.desired.read_text()
    world.daemon.write("version: 1\nsandboxes:\n  alice: {spec: box\n  bob: ]\n")
    rejected = world.daemon.wait_event("manifest.rejected")
    assert re.match(rf"{world.daemon.desired}:3:\d+: ", rejected["error"])
    assert world.statuses() == {"alice": "RUNNING", "bob": "STOPPED"}
    checked = world.daemon.cli("check")
    assert checked.returncode == 1
    assert rejected["error"] in checked.stdout + checked.stderr
    reloaded = world.daemon.cli("reload")
    assert reloaded.returncode == 1
    # What happens to the sandboxes meanwhile is put right as before.
    world.docker.stop(world.name("alice"))
    world.wait(lambda: world.state("alice") == "running")
    world.daemon.write(good)
    world.wait(lambda: not world.ask("/v1/status")["desired"]["errors"])
    assert world.ids() == ids


def test_a_bad_record_holds_back_only_itself(world: World) -> None:
    world.start(alice=box(), bob=box())
    alice, bob = world.id("alice"), str(world.id("bob"))
    edited = {"alice": {"spec": "no-such-spec"}, "bob": box(env={"COLOUR": "red"}), "carol": box()}
    world.declare(**edited)
    world.wait(lambda: world.id("bob") not in {None, bob})
    world.wait(lambda: world.ask("/v1/convergence")["pending"] == ["alice"])
    assert set(world.statuses().values()) == {"RUNNING"}
    assert "no-such-spec" in world.row("alice")["reason"]
    assert world.id("alice") == alice
    assert "no-such-spec" in world.daemon.wait_event("manifest.held")["error"]


def test_a_mass_deletion_waits_for_confirmation(six: World) -> None:
    ids = six.ids()
    six.declare(s0=box("stopped"), s1=box("stopped"))
    guard = six.daemon.wait_event("manifest.brake")
    assert (guard["deletions"], guard["of"]) == (4, 6)
    assert awaiting(six) == ["s2", "s3", "s4", "s5"]
    assert "--allow-mass-delete" in six.daemon.cli("status").stdout
    assert six.daemon.cli("apply").returncode == 1
    assert six.ids() == ids
    confirmed = six.daemon.cli("apply", "--allow-mass-delete")
    assert confirmed.returncode == 0, confirmed.stderr
    assert six.names() == ["s0", "s1"]


def test_edits_apply_while_deletions_wait(six: World) -> None:
    kept = six.id("s5")
    six.declare(s0=box("running"), new=box("stopped"))
    six.daemon.wait_event("manifest.brake")
    six.wait(lambda: six.state("s0") == "running" and six.id("new"))
    assert six.id("s5") == kept


def test_held_deletions_survive_a_restart(six: World) -> None:
    ids = six.ids()
    six.declare(s0=box("stopped"))
    six.daemon.wait_event("manifest.brake")
    six.daemon.kill9()
    mark = six.daemon.mark()
    six.daemon.start()
    six.daemon.wait_event("manifest.brake", since=mark)
    six.wait(lambda: awaiting(six))
    assert six.ids() == ids


@pytest.mark.parametrize(
    "spoil",
    [Path.unlink, lambda path: path.write_text(""), lambda path: path.write_text("# nothing\n")],
    ids=["gone", "empty", "only a comment"],
)
def test_a_missing_or_empty_file_deletes_nothing(
    world: World, spoil: Callable[[Path], object]
) -> None:
    world.start(alice=box("stopped"))
    alice = world.id("alice")
    spoil(world.daemon.desired)
    world.wait(
        lambda: world.daemon.events("manifest.brake") or world.daemon.events("manifest.rejected")
    )
    world.daemon.kill9()
    world.daemon.start()
    world.wait_status(alice="STOPPED")
    world.daemon.write(document(alice=box("paused")))
    world.wait_status(alice="PAUSED")
    assert world.id("alice") == alice
