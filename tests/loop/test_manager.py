from tests.loop.stage import Stage


async def test_a_record_becomes_a_running_sandbox(stage: Stage):
    await stage.converge({"alice": "running", "bob": "stopped", "carol": "paused"})
    assert stage.phases() == {"alice": "running", "bob": "created", "carol": "paused"}
    assert stage.statuses() == {"alice": "RUNNING", "bob": "STOPPED", "carol": "PAUSED"}


async def test_a_taken_port_of_an_older_spec_is_tried_again_with_backoff(stage: Stage):
    await stage.converge({"alice": {"on_change": "ignore"}})
    (port,) = stage.seen("alice").ports.values()
    ports = [{"name": "OTHER", "container_port": 9000}]
    await stage.edit({"alice": {"on_change": "ignore", "ports": ports}})
    stage.host.kill("oh-agent-server-alice")
    stage.host.take_port(port)
    await stage.after(60)
    assert stage.engine.count("start") < 10
    assert stage.row("alice")["status"] == "ERROR"
    stage.host.free_port(port)
    await stage.after(60)
    assert stage.statuses() == {"alice": "RUNNING"}
