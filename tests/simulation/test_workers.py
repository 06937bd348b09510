import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import nullcontext

import pytest

from reconciler.core.priority import Priority
from reconciler.progress import Progress, waiting
from reconciler.reconcile.queue import WorkQueue
from reconciler.reconcile.workers import Workers
from reconciler.telemetry import events
from tests.simulation.stage import Notebook

WORKERS = 3
LONGEST = 100.0


class Shop:
    """A dispatcher whose passes take a second, or what ``seconds`` says."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.queue = WorkQueue(loop.time)
        self.ready = asyncio.Event()
        self.ready.set()
        self.seconds: dict[str, float] = {}
        # What a pass waits for says how long it may take.
        self.limits: dict[str, float] = {}
        self.broken: set[str] = set()
        self.running: Counter[str] = Counter()
        self.most = 0
        self.began: list[tuple[float, str]] = []
        self.notes = Notebook(loop.time)
        self.progress = Progress(loop.time)
        self.dispatcher = Workers(
            self.queue,
            reconcile=self._reconcile,
            ready=self.ready,
            workers=WORKERS,
            recorder=self.notes,
        )

    async def _reconcile(self, key: str) -> None:
        self.began.append((asyncio.get_running_loop().time(), key))
        self.running[key] += 1
        self.most = max(self.most, self.running.total())
        assert self.running[key] == 1
        try:
            with waiting(self.limits[key]) if key in self.limits else nullcontext():
                await asyncio.sleep(self.seconds.get(key, 1.0))
            if key in self.broken:
                raise ZeroDivisionError
        finally:
            self.running[key] -= 1

    def add(self, *keys: str) -> None:
        for key in keys:
            self.queue.add(key, Priority.EVENT)

    @property
    def order(self) -> list[str]:
        return [key for _, key in self.began]


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    made = Shop()
    with made.progress.collecting():
        task = asyncio.create_task(made.dispatcher.run())
    yield made
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_keys_are_worked_on_in_parallel_but_by_no_more_than_the_workers(shop: Shop):
    shop.add(*"abcdefg")
    await asyncio.sleep(10)
    assert sorted(shop.order) == list("abcdefg")
    assert shop.most == WORKERS
    assert shop.began[WORKERS][0] == pytest.approx(1.0)


async def test_one_key_is_worked_on_by_one_worker_at_a_time(shop: Shop):
    shop.add("a")
    await asyncio.sleep(0.5)
    shop.add("a")
    await asyncio.sleep(10)
    assert [at for at, _ in shop.began] == pytest.approx([0.0, 1.0])


async def test_one_that_hangs_delays_no_other(shop: Shop):
    shop.seconds["a"] = 1e6
    shop.add(*"ab")
    for _ in range(5):
        await asyncio.sleep(1.5)
        shop.add("b")
    assert shop.order.count("b") == 5


async def test_a_bug_in_one_pass_ends_no_other_and_the_key_comes_back(shop: Shop):
    shop.broken.add("a")
    shop.add(*"ab")
    await asyncio.sleep(5)
    shop.broken.clear()
    await asyncio.sleep(20)
    assert sorted(shop.order) == ["a", "a", "b"]
    assert len(shop.notes.said(events.TaskFailed)) == 1


async def test_nothing_runs_while_it_is_not_ready(shop: Shop):
    await asyncio.sleep(20)
    shop.ready.clear()
    shop.add(*"abc")
    await asyncio.sleep(600)
    assert shop.order == []
    assert not shop.progress.hung()
    shop.ready.set()
    await asyncio.sleep(5)
    assert sorted(shop.order) == ["a", "b", "c"]


async def test_one_that_waits_within_its_limits_is_no_hang(shop: Shop):
    assert not shop.progress.hung()
    await asyncio.sleep(3600)
    assert not shop.progress.hung()
    shop.seconds = dict.fromkeys("abcd", LONGEST)
    shop.limits = dict.fromkeys("abcd", LONGEST)
    shop.add(*"abcd")
    for _ in range(40):
        await asyncio.sleep(LONGEST / 10)
        assert not shop.progress.hung()


@pytest.mark.parametrize("limit", [None, 60.0])
async def test_a_pass_that_hangs_is_noticed_within_90_seconds(shop: Shop, limit: float | None):
    shop.seconds["a"] = 10 * LONGEST
    if limit is not None:
        shop.limits["a"] = limit
    shop.add("a")
    await asyncio.sleep(90)
    assert shop.progress.hung() == ["reconcile a"]
    await asyncio.sleep(10 * LONGEST)
    assert not shop.progress.hung()


async def test_its_end_ends_the_passes():
    shop = Shop()
    task = asyncio.create_task(shop.dispatcher.run())
    shop.add("a")
    await asyncio.sleep(0.5)
    assert not shop.queue.idle(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert shop.running.total() == 0
