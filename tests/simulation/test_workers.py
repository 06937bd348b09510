import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import nullcontext

import pytest

from reconciler.core.priority import Priority
from reconciler.liveness import Liveness, waiting
from reconciler.reconcile.queue import WorkQueue
from reconciler.reconcile.workers import Result, Workers
from reconciler.telemetry import events
from tests.simulation.stage import LogCapture

WORKERS = 3
LONGEST = 100.0


class WorkerPool:
    """Workers with passes of one second, or of ``seconds`` by key."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.queue = WorkQueue(loop.time)
        self.ready = asyncio.Event()
        self.ready.set()
        self.seconds: dict[str, float] = {}
        # What a pass waits for says how long it may take.
        self.limits: dict[str, float] = {}
        self.broken: set[str] = set()
        self.requeue: dict[str, float] = {}
        self.running: Counter[str] = Counter()
        self.most = 0
        self.began: list[tuple[float, str]] = []
        self.notes = LogCapture(loop.time)
        self.liveness = Liveness(loop.time)
        self.workers = Workers(
            self.queue,
            reconcile=self._reconcile,
            ready=self.ready,
            workers=WORKERS,
            recorder=self.notes,
        )

    async def _reconcile(self, key: str) -> Result:
        self.began.append((asyncio.get_running_loop().time(), key))
        self.running[key] += 1
        self.most = max(self.most, self.running.total())
        assert self.running[key] == 1
        try:
            with waiting(self.limits[key]) if key in self.limits else nullcontext():
                await asyncio.sleep(self.seconds.get(key, 1.0))
            if key in self.broken:
                raise ZeroDivisionError
            return Result(self.requeue.pop(key, None))
        finally:
            self.running[key] -= 1

    def add(self, *keys: str) -> None:
        for key in keys:
            self.queue.add(key, Priority.EVENT)

    @property
    def order(self) -> list[str]:
        return [key for _, key in self.began]


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    made = WorkerPool()
    with made.liveness.collecting():
        task = asyncio.create_task(made.workers.run())
    yield made
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_keys_are_reconciled_in_parallel_up_to_the_limit(pool: WorkerPool):
    pool.add(*"abcdefg")
    await asyncio.sleep(10)
    assert sorted(pool.order) == list("abcdefg")
    assert pool.most == WORKERS
    assert pool.began[WORKERS][0] == pytest.approx(1.0)


async def test_key_is_reconciled_by_one_worker_at_a_time(pool: WorkerPool):
    pool.add("a")
    await asyncio.sleep(0.5)
    pool.add("a")
    await asyncio.sleep(10)
    assert [at for at, _ in pool.began] == pytest.approx([0.0, 1.0])


async def test_hanging_key_delays_no_other(pool: WorkerPool):
    pool.seconds["a"] = 1e6
    pool.add(*"ab")
    for _ in range(5):
        await asyncio.sleep(1.5)
        pool.add("b")
    assert pool.order.count("b") == 5


async def test_a_key_is_reconciled_again_after_the_requested_delay(pool: WorkerPool):
    pool.requeue["a"] = 30.0
    pool.add("a")
    await asyncio.sleep(100)
    assert [at for at, _ in pool.began] == pytest.approx([0.0, 31.0])


async def test_bug_in_one_pass_ends_no_other(pool: WorkerPool):
    pool.broken.add("a")
    pool.add(*"ab")
    await asyncio.sleep(5)
    pool.broken.clear()
    await asyncio.sleep(20)
    assert sorted(pool.order) == ["a", "a", "b"]
    assert len(pool.notes.logged(events.TaskFailed)) == 1


async def test_nothing_runs_while_it_is_not_ready(pool: WorkerPool):
    await asyncio.sleep(20)
    pool.ready.clear()
    pool.add(*"abc")
    await asyncio.sleep(600)
    assert pool.order == []
    assert not pool.liveness.hung()
    pool.ready.set()
    await asyncio.sleep(5)
    assert sorted(pool.order) == ["a", "b", "c"]


async def test_wait_within_its_limit_is_no_hang(pool: WorkerPool):
    assert not pool.liveness.hung()
    await asyncio.sleep(3600)
    assert not pool.liveness.hung()
    pool.seconds = dict.fromkeys("abcd", LONGEST)
    pool.limits = dict.fromkeys("abcd", LONGEST)
    pool.add(*"abcd")
    for _ in range(40):
        await asyncio.sleep(LONGEST / 10)
        assert not pool.liveness.hung()


@pytest.mark.parametrize("limit", [None, 60.0])
async def test_a_pass_that_hangs_is_noticed_within_90_seconds(
    pool: WorkerPool, limit: float | None
):
    pool.seconds["a"] = 10 * LONGEST
    if limit is not None:
        pool.limits["a"] = limit
    pool.add("a")
    await asyncio.sleep(90)
    assert pool.liveness.hung() == ["reconcile a"]
    await asyncio.sleep(10 * LONGEST)
    assert not pool.liveness.hung()


async def test_cancellation_ends_the_passes():
    pool = WorkerPool()
    task = asyncio.create_task(pool.workers.run())
    pool.add("a")
    await asyncio.sleep(0.5)
    assert not pool.queue.idle(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert pool.running.total() == 0
