import socket
from pathlib import Path

import pytest

from reconciler.core.errors import ReconcilerError
from reconciler.core.observed import Container, Observed, Phase
from reconciler.core.snapshot import Identity
from reconciler.core.spec import SandboxSpec
from reconciler.reconcile.identity import IdentityLeases, can_bind
from reconciler.store.store import Store
from reconciler.telemetry import events
from tests.harness.descriptors import none_left
from tests.simulation.simulated import SimulatedClock
from tests.simulation.stage import LogCapture, Stage

FIRST, LAST = 21000, 21009


def spec(*ports: int) -> SandboxSpec:
    listed = [{"name": f"P{port}", "container_port": port} for port in ports]
    return SandboxSpec.model_validate({"image": "demo", "ports": listed})


def container(key: str | None, ports: dict[int, int], *, made: float = 0.0) -> Container:
    return Container(
        id=f"id-{made}",
        name="c",
        sandbox="alice",
        spec="demo",
        spec_hash="1:x",
        phase=Phase.EXITED,
        created_at=made,
        ports=ports,
        session_key=key,
    )


class Leasing:
    """Identities over a store in memory."""

    def __init__(self, store: Store, clock: SimulatedClock) -> None:
        self.store, self.clock = store, clock
        self.notes = LogCapture(clock)
        self.identities = IdentityLeases(
            store,
            port_range=(FIRST, LAST),
            address="127.0.0.1",
            clock=clock,
            recorder=self.notes,
        )
        self.ensure = self.identities.ensure


@pytest.fixture
async def leasing(tmp_path: Path):
    async with await Store.open_readonly(tmp_path) as store:
        yield Leasing(store, SimulatedClock())


async def test_identity_is_stable(leasing: Leasing):
    first = leasing.ensure("alice", spec(80, 81))
    assert leasing.ensure("alice", spec(80, 81)) == first
    assert len(first.session_key) >= 40
    assert leasing.store.identity("alice") == first


async def test_no_two_sandboxes_share_a_port_or_a_key(leasing: Leasing):
    made = [leasing.ensure(name, spec(80, 81)) for name in ("a", "b", "c")]
    ports = [port for identity in made for port in identity.ports.values()]
    assert len(set(ports)) == 6
    assert all(FIRST <= port <= LAST for port in ports)
    assert len({identity.session_key for identity in made}) == 3


async def test_changed_spec_keeps_its_remaining_ports(leasing: Leasing):
    first = leasing.ensure("alice", spec(80, 81))
    second = leasing.ensure("alice", spec(81, 82))
    assert second.ports[81] == first.ports[81]
    assert second.ports.keys() == {81, 82}
    assert second.session_key == first.session_key


async def test_used_up_range_is_an_error_and_keeps_the_leases(leasing: Leasing):
    first = leasing.ensure("alice", spec(*range(80, 89)))
    with pytest.raises(ReconcilerError, match=f"no host port is free in {FIRST}-{LAST}"):
        leasing.ensure("bob", spec(80, 81))
    assert leasing.store.identity("alice") == first
    leasing.store.forget("alice")
    assert len(leasing.ensure("bob", spec(80, 81)).ports) == 2


async def test_port_with_a_listener_is_skipped(leasing: Leasing, taken_ports: set[int]):
    taken_ports |= set(range(FIRST, LAST))
    assert leasing.ensure("alice", spec(80)).ports[80] == LAST


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_port_can_be_bound_unless_somebody_listens_there(family, address):
    with socket.socket(family) as other:
        other.bind((address, 0))
        port = other.getsockname()[1]
        other.listen()
        assert not can_bind(address, port)
    assert can_bind(address, port)


async def test_taken_port_is_replaced_and_quarantined(leasing: Leasing):
    first = leasing.ensure("alice", spec(80, 81))
    lost = first.ports[80]
    assert leasing.identities.replace("alice", lost)
    second = leasing.store.identity("alice")
    assert second.ports[80] != lost
    assert second.ports[81] == first.ports[81]
    (line,) = leasing.notes.logged(events.PortReplaced, sandbox="alice")
    assert (line["old_port"], line["port"]) == (lost, second.ports[80])
    others = leasing.ensure("bob", spec(*range(80, 87)))
    assert lost not in others.ports.values()
    leasing.clock.jump(601)
    assert lost in leasing.ensure("carol", spec(80)).ports.values()


async def test_unnamed_taken_port_replaces_all_ports(leasing: Leasing):
    first = leasing.ensure("alice", spec(80, 81))
    assert leasing.identities.replace("alice", None)
    second = leasing.store.identity("alice")
    assert not set(first.ports.values()) & set(second.ports.values())


async def test_a_port_that_is_not_leased_cannot_be_replaced(leasing: Leasing):
    first = leasing.ensure("alice", spec(80))
    assert not leasing.identities.replace("alice", 9)
    assert not leasing.identities.replace("nobody", 9)
    assert leasing.store.identity("alice") == first
    assert not leasing.notes.logged(events.PortReplaced)


async def test_lost_database_adopts_key_and_ports(leasing: Leasing):
    leasing.identities.adopt("alice", Observed((container("key-of-alice", {80: 21005}),)))
    assert leasing.ensure("alice", spec(80)) == Identity("key-of-alice", {80: 21005})
    assert leasing.ensure("bob", spec(80)).ports[80] != 21005


async def test_oldest_container_is_adopted_if_none_is_stored(leasing: Leasing):
    both = container("old", {80: 21001}, made=1), container("new", {80: 21002}, made=2)
    leasing.identities.adopt("alice", Observed(both))
    assert leasing.store.identity("alice") == Identity("old", {80: 21001})
    leasing.identities.adopt("alice", Observed((container("other", {}),)))
    assert leasing.store.identity("alice").session_key == "old"


async def test_a_port_that_another_leased_is_not_adopted(leasing: Leasing):
    taken = leasing.ensure("bob", spec(80)).ports[80]
    leasing.identities.adopt("alice", Observed((container("key", {80: taken, 81: 21009}),)))
    assert leasing.store.identity("alice").ports == {81: 21009}


async def test_leases_outlive_the_store(tmp_path: Path):
    options = {"on_trouble": lambda _: None, "on_recovered": lambda: None}
    async with await Store.open(tmp_path, **options) as store:
        first = Leasing(store, SimulatedClock()).ensure("alice", spec(80))
    async with await Store.open(tmp_path, **options) as store:
        leasing = Leasing(store, SimulatedClock())
        assert leasing.ensure("bob", spec(80)).ports[80] != first.ports[80]
        assert leasing.ensure("alice", spec(80)) == first


async def test_used_up_port_range_is_the_reason_of_a_new_sandbox(tmp_path: Path):
    async with Stage(tmp_path, port_range=(20000, 20000)) as stage:
        await stage.converge({"alice": "stopped"})
        two = [{"name": name, "container_port": 8000 + n} for n, name in enumerate(("A", "B"))]
        await stage.edit({"alice": {"ports": two}})
        await stage.after(30)
        assert not stage.notes.logged(events.TaskFailed)
        assert "port_range" in stage.row("alice")["reason"]


def test_port_counts_as_free_without_a_file_descriptor() -> None:
    with none_left():
        assert can_bind("127.0.0.1", 1)
