from collections.abc import AsyncIterator

import pytest

from tests.engine.worlds import FakeWorld, RealWorld, World, closing
from tests.harness.instance import Instance


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.engine)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Both engines, one after the other."""
    fake = request.param == "fake"
    made = FakeWorld() if fake else RealWorld(request.getfixturevalue("instance"))
    async with closing(made) as opened:
        yield opened


@pytest.fixture
async def real(instance: Instance) -> AsyncIterator[RealWorld]:
    """The real engine only."""
    made = RealWorld(instance)
    async with closing(made):
        yield made
