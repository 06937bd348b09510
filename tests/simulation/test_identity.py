import socket
from pathlib import Path

import pytest

from reconciler.core.errors import ReconcilerError
from reconciler.core.model import Container, Identity, Observed, Phase
from reconciler.core.spec import SandboxSpec
from reconciler.reconcile.identity import IdentityLeases, can_bind
from reconciler.store.store import Store
from reconciler.telemetry import events
from tests.harness.descriptors import none_left
from tests.simulation.simulated import SimulatedClock
from tests.simulation.stage import Notebook, Stage

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


class Desk:
    """Identities over a store in memory."""

    def __init__(self, store: Store, clock: SimulatedClock) -> None:
        self.store, self.clock = store, clock
        self.notes = Notebook(clock)
        self.identities = IdentityLeases(
            store,
            port_range=(FIRST, LAST),
            address="127.0.0.1",
            clock=clock,
            recorder=self.notes,
        )
        self.ensure = self.identities.ensure


@pytest.fixture
async def desk(tmp_path: Path):
    async with await Store.open_readonly(tmp_path) as store:
        yield Desk(store, SimulatedClock())


async def test_an_identity_stays_what_it_is(desk: Desk):
    first = desk.ensure("alice", spec(80, 81))
    assert desk.ensure("alice", spec(80, 81)) == first
    assert len(first.session_key) >= 40
    assert desk.store.identity("alice") == first


async def test_no_two_sandboxes_share_a_port_or_a_key(desk: Desk):
    made = [desk.ensure(name, spec(80, 81)) for name in ("a", "b", "c")]
    ports = [port for identity in made for port in identity.ports.values()]
    assert len(set(ports)) == 6
    assert all(FIRST <= port <= LAST for port in ports)
    assert len({identity.session_key for identity in made}) == 3


async def test_a_spec_that_changes_keeps_what_it_still_publishes(desk: Desk):
    first = desk.ensure("alice", spec(80, 81))
    second = desk.ensure("alice", spec(81, 82))
    assert second.ports[81] == first.ports[81]
    assert second.ports.keys() == {81, 82}
    assert second.session_key == first.session_key


async def test_a_range_that_is_used_up_says_so_and_keeps_the_leases(desk: Desk):
    first = desk.ensure("alice", spec(*range(80, 89)))
    with pytest.raises(ReconcilerError, match=f"no host port is free in {FIRST}-{LAST}"):
        desk.ensure("bob", spec(80, 81))
    assert desk.store.identity("alice") == first
    desk.store.forget("alice")
    assert len(desk.ensure("bob", spec(80, 81)).ports) == 2


async def test_a_port_that_somebody_listens_on_is_passed_over(desk: Desk, taken_ports: set[int]):
    taken_ports |= set(range(FIRST, LAST))
    assert desk.ensure("alice", spec(80)).ports[80] == LAST


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


async def test_a_taken_port_is_replaced_told_and_left_alone_for_a_while(desk: Desk):
    first = desk.ensure("alice", spec(80, 81))
    lost = first.ports[80]
    assert desk.identities.replace("alice", lost)
    second = desk.store.identity("alice")
    assert second.ports[80] != lost
    assert second.ports[81] == first.ports[81]
    (line,) = desk.notes.said(events.PortReplaced, sandbox="alice")
    assert (line["old_port"], line["port"]) == (lost, second.ports[80])
    others = desk.ensure("bob", spec(*range(80, 87)))
    assert lost not in others.ports.values()
    desk.clock.jump(601)
    assert lost in desk.ensure("carol", spec(80)).ports.values()


async def test_where_the_engine_does_not_say_which_port_all_are_replaced(desk: Desk):
    first = desk.ensure("alice", spec(80, 81))
    assert desk.identities.replace("alice", None)
    second = desk.store.identity("alice")
    assert not set(first.ports.values()) & set(second.ports.values())


async def test_a_port_that_is_not_leased_cannot_be_replaced(desk: Desk):
    first = desk.ensure("alice", spec(80))
    assert not desk.identities.replace("alice", 9)
    assert not desk.identities.replace("nobody", 9)
    assert desk.store.identity("alice") == first
    assert not desk.notes.said(events.PortReplaced)


async def test_with_the_books_lost_a_container_is_adopted_with_its_key_and_ports(desk: Desk):
    desk.identities.adopt("alice", Observed((container("key-of-alice", {80: 21005}),)))
    assert desk.ensure("alice", spec(80)) == Identity("key-of-alice", {80: 21005})
    assert desk.ensure("bob", spec(80)).ports[80] != 21005


async def test_the_elder_is_adopted_and_nothing_that_the_books_know(desk: Desk):
    both = container("old", {80: 21001}, made=1), container("new", {80: 21002}, made=2)
    desk.identities.adopt("alice", Observed(both))
    assert desk.store.identity("alice") == Identity("old", {80: 21001})
    desk.identities.adopt("alice", Observed((container("other", {}),)))
    assert desk.store.identity("alice").session_key == "old"


async def test_a_port_that_another_leased_is_not_adopted(desk: Desk):
    taken = desk.ensure("bob", spec(80)).ports[80]
    desk.identities.adopt("alice", Observed((container("key", {80: taken, 81: 21009}),)))
    assert desk.store.identity("alice").ports == {81: 21009}


async def test_leases_outlive_the_store(tmp_path: Path):
    options = {"on_trouble": lambda _: None, "on_recovered": lambda: None}
    async with await Store.open(tmp_path, **options) as store:
        first = Desk(store, SimulatedClock()).ensure("alice", spec(80))
    async with await Store.open(tmp_path, **options) as store:
        desk = Desk(store, SimulatedClock())
        assert desk.ensure("bob", spec(80)).ports[80] != first.ports[80]
        assert desk.ensure("alice", spec(80)) == first


async def test_one_that_was_never_started_says_that_the_port_range_is_used_up(tmp_path: Path):
    async with Stage(tmp_path, port_range=(20000, 20000)) as stage:
        await stage.converge({"alice": "stopped"})
        two = [{"name": name, "container_port": 8000 + n} for n, name in enumerate(("A", "B"))]
        await stage.edit({"alice": {"ports": two}})
        await stage.after(30)
        assert not stage.notes.said(events.TaskFailed)
        assert "port_range" in stage.row("alice")["reason"]


def test_without_a_descriptor_to_try_it_with_a_port_counts_as_free() -> None:
    with none_left():
        assert can_bind("127.0.0.1", 1)
