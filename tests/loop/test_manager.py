from tests.loop.stage import Stage


async def test_a_record_becomes_a_running_sandbox(stage: Stage):
    await stage.converge({"alice": "running", "bob": "stopped", "carol": "paused"})
    assert stage.phases() == {"alice": "running", "bob": "created", "carol": "paused"}
    assert stage.statuses() == {"alice": "RUNNING", "bob": "STOPPED", "carol": "PAUSED"}
