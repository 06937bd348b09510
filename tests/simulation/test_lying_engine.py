"""An engine that gives a false answer once."""

from tests.simulation.stage import Stage


async def test_false_absence_of_a_deleted_sandbox_leaves_nothing(stage: Stage):
    await stage.converge({"alice": "running"})
    true_inspect = stage.engine.inspect

    async def deny(container_id: str) -> None:
        stage.engine.inspect = true_inspect

    stage.engine.inspect = deny
    stage.manager.cache.mark_dirty("alice", stage.seen("alice").id)
    await stage.edit({})
    await stage.after(20)
    assert stage.phases() == {}
    assert stage.store.deleted == {}
