import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from reconciler.reconcile import identity
from tests.simulation.simulated import SimulatedLoop
from tests.simulation.stage import Stage

Loops = dict[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Loops:
    """Simulate time, unless a test asks for ``loop_factories=["real"]``."""
    marker = item.get_closest_marker("asyncio")
    named = marker.kwargs.get("loop_factories") if marker else None
    return {"real": asyncio.SelectorEventLoop} if named else {"simulated": SimulatedLoop}


@pytest.fixture(autouse=True)
def taken_ports(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Ports that cannot be bound; all others can, regardless of this machine."""
    taken: set[int] = set()
    monkeypatch.setattr(identity, "can_bind", lambda _address, port: port not in taken)
    return taken


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with Stage(tmp_path) as made:
        yield made
