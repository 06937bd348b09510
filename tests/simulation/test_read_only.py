"""Queries write nothing: status, plan, convergence, garbage and STATUS only read."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reconciler.store.table import DirtyTable
from tests.simulation.stage import Stage


@contextmanager
def frozen() -> Iterator[None]:
    """Make every write to any store fail."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a query has written")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "drop"):
            patch.setattr(DirtyTable, name, refuse)
        yield


async def look(stage: Stage) -> None:
    queries = stage.queries
    await queries.status(secrets=True)
    queries.plan()
    queries.convergence()
    queries.garbage()
    queries.export()
    queries.summary()


async def test_queries_write_nothing(stage: Stage):
    await stage.converge({"alice": "running", "bob": "paused"})
    stage.host.add_container("stray", {})
    stage.write({"alice": {"ports": [{"name": "B", "container_port": 9}]}, "new": "running"})
    # Records without a pass yet: nothing is leased for them.
    for task in stage._tasks:
        task.cancel()
    await stage.manager.manifest_sync.read()
    lines = len(stage.notes.lines)
    with frozen():
        await look(stage)
    assert len(stage.notes.lines) == lines
    assert stage.store.identity("new") is None
    assert stage.row("new")["exposed_urls"] == []


async def test_nothing_is_written_before_the_first_pass(stage: Stage):
    await stage.converge({"alice": "running"})
    await stage.stop()
    await stage.start(absent=("workers", "manifest-watch", "disk", "informer", "sweeper"))
    lines = len(stage.notes.lines)
    with frozen():
        await look(stage)
    assert len(stage.notes.lines) == lines


async def test_a_plan_before_the_lease_names_every_step(stage: Stage):
    stage.write({"alice": "running"})
    await stage.start(absent=("workers", "manifest-watch"))
    await stage.after(6)
    (change,) = stage.queries.plan()["changes"]
    assert [action["verb"] for action in change["actions"]] == ["create-volume", "create", "start"]
    assert stage.store.identity("alice") is None
