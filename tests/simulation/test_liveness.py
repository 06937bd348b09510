"""A hang is noticed within three intervals of the watchdog; slow work is no hang."""

import asyncio
from collections.abc import Callable

import pytest

from reconciler.liveness import Liveness, activity, waiting
from tests.simulation.stage import Stage

# Three intervals of the shipped unit, less the pause between two checks.
NOTICED = 75.0


def hang(target: object, name: str) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    setattr(target, name, never)


def hang_at(verb: str) -> Callable[[Stage], None]:
    return lambda stage: stage.engine.hang(verb)


HANGS: dict[str, Callable[[Stage], None]] = {
    "informer": hang_at("events"),
    "relist": hang_at("list"),
    "reconcile bob": hang_at("create"),
    "manifest-watch": lambda stage: hang(stage.manager.manifest_sync, "read"),
    "store-writer": lambda stage: hang(stage.store._writer, "flush"),
}


@pytest.mark.parametrize("name", HANGS)
async def test_hanging_activity_is_noticed(stage: Stage, name: str):
    stage.write({"alice": "running"})
    await stage.start(absent=() if name == "manifest-watch" else ("manifest-watch",))
    await stage.quiet()
    if name != "manifest-watch":
        await stage.after(200)
    assert stage.liveness.hung() == []
    HANGS[name](stage)
    if name == "informer":
        stage.host.end_streams()
    if name == "relist":
        await stage.after(60)
    stage.write({"alice": "running", "bob": "running"})
    if name != "manifest-watch":
        await stage.manager.manifest_sync.read()
    await stage.after(NOTICED)
    assert name in stage.liveness.hung()
    vars(stage.store._writer).pop("flush", None)


async def test_a_slow_engine_is_no_hang(stage: Stage):
    await stage.converge({"alice": "running"})
    stage.engine.latency = dict.fromkeys(("create", "start", "stop", "remove"), 59.0)
    stage.engine.latency |= dict.fromkeys(("list", "inspect", "log_tail"), 14.0)
    await stage.edit({"alice": {"env": {"A": "1"}}, "bob": "running", "carol": "running"})
    for _ in range(120):
        await stage.after(5)
        assert stage.liveness.hung() == []
    assert stage.engine.count("create") >= 3


async def test_a_wait_counts_for_the_activity_that_it_is_in():
    progress = Liveness(asyncio.get_running_loop().time)

    async def work() -> None:
        with activity("work"):
            with waiting(60):
                await asyncio.sleep(60)
            await asyncio.sleep(600)

    with progress.collecting():
        task = asyncio.create_task(work())
    await asyncio.sleep(70)
    assert progress.hung() == []
    await asyncio.sleep(30)
    assert progress.hung() == ["work"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert progress.hung() == []


async def test_activity_without_a_progress_collector():
    with activity("work"), waiting(1):
        await asyncio.sleep(5)
