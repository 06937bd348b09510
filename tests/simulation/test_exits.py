"""A sandbox that exits while its engine is unavailable."""

from reconciler.core.errors import EngineTimeout, EngineUnavailable
from tests.simulation.stage import PREFIX, Stage


async def test_nothing_is_started_during_an_engine_shutdown(stage: Stage):
    await stage.converge({"alice": "running"})
    starts = stage.engine.count("start")
    stage.engine.fail_next("log_tail", EngineUnavailable("gone"))
    stage.host.kill(f"{PREFIX}alice")
    await stage.after(0.5)
    assert stage.engine.count("start") == starts
    await stage.after(5)
    assert stage.statuses() == {"alice": "RUNNING"}
    assert stage.row("alice")["restarts"] == 1


async def test_hanging_log_delays_no_restart(stage: Stage):
    await stage.converge({"alice": "running"})
    starts = stage.engine.count("start")
    stage.engine.fail_next("log_tail", EngineTimeout("slow"))
    stage.host.kill(f"{PREFIX}alice")
    await stage.after(0.5)
    assert stage.engine.count("start") == starts + 1
