import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reconciler.core.priority import Priority
from reconciler.reconcile.queue import WorkQueue

USER, EVENT, TIMER, RESYNC = Priority


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def queue() -> WorkQueue:
    return WorkQueue(asyncio.get_running_loop().time)


async def drained(queue: WorkQueue) -> list[str]:
    """Return all keys in the order in which they are handed out, each done at once."""
    order = []
    while len(queue):
        key = await queue.get()
        order.append(key)
        queue.done(key)
    return order


@pytest.mark.parametrize(
    ("added", "order"),
    [
        ([("a", RESYNC, 0), ("b", USER, 0)], "ba"),
        ([("a", EVENT, 0), ("b", EVENT, 0)], "ab"),
        ([("a", USER, 5), ("b", RESYNC, 1)], "ba"),
        ([("a", RESYNC, 0), ("b", TIMER, 0), ("c", EVENT, 0), ("d", USER, 0)], "dcba"),
        ([("a", RESYNC, 0), ("b", EVENT, 0), ("a", USER, 0)], "ab"),  # the highest priority
        ([("a", USER, 0), ("b", EVENT, 0), ("a", RESYNC, 0)], "ab"),
        ([("a", TIMER, 9), ("b", TIMER, 5), ("a", TIMER, 1)], "ab"),  # the earliest due time
        ([("a", TIMER, 1), ("b", TIMER, 5), ("a", TIMER, 9)], "ab"),
        ([("a", USER, -5), ("b", USER, 0)], "ab"),
    ],
)
async def test_priority_decides_the_order(
    queue: WorkQueue, added: list[tuple[str, Priority, float]], order
):
    for key, priority, delay in added:
        queue.add(key, priority, delay)
    assert "".join(await drained(queue)) == order


async def test_earlier_due_key_is_first(queue: WorkQueue):
    queue.add("late", EVENT, 2)
    queue.add("early", EVENT, 1)
    await asyncio.sleep(3)
    assert await drained(queue) == ["early", "late"]


async def test_a_key_is_handed_out_when_it_is_due(queue: WorkQueue):
    queue.add("a", TIMER, 30)
    assert await queue.get() == "a"
    assert asyncio.get_running_loop().time() == pytest.approx(30)


async def test_earlier_key_wakes_a_waiting_get(queue: WorkQueue):
    queue.add("late", TIMER, 30)
    asyncio.get_running_loop().call_later(5, queue.add, "soon", RESYNC)
    assert await queue.get() == "soon"
    assert asyncio.get_running_loop().time() == pytest.approx(5)


async def test_key_added_while_active_is_due_after_done(queue: WorkQueue):
    queue.add("a", USER)
    await queue.get()
    queue.add("a", EVENT)
    queue.add("b", RESYNC)
    assert await queue.get() == "b"
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(60)
    assert not waiting.done()
    queue.done("a")
    assert await waiting == "a"


async def test_cancelled_get_takes_no_key(queue: WorkQueue):
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    queue.add("a", USER)
    assert await queue.get() == "a"


async def test_queue_is_idle_without_active_or_due_keys(queue: WorkQueue):
    assert queue.idle(1)
    queue.add("a", TIMER, 10)
    assert queue.idle(9)
    assert not queue.idle(11)
    await queue.get()
    assert not queue.idle(0)
    assert queue._active == {"a"}
    queue.done("a")
    assert queue.idle(1000)


async def test_repeated_adds_of_a_waiting_key_use_no_more_memory(queue: WorkQueue):
    for _ in range(1000):
        queue.add("a", RESYNC)
        key = await queue.get()
        queue.add(key, TIMER, 7 * 86400)
        queue.done(key)
    assert len(queue._waiting) + len(queue._ready) < 100
    assert len(queue) == 1


@dataclass
class Asked:
    priority: Priority
    due: float


@dataclass
class Model:
    """Model of the queue: its keys, and the active ones."""

    asked: dict[str, Asked] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)


class QueueMachine(RuleBasedStateMachine):
    """No key is lost or handed out twice, and the most urgent due key is first."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue = WorkQueue(self.clock)
        self.model = Model()

    @rule(
        key=st.sampled_from("abcdef"), priority=st.sampled_from(Priority), delay=st.integers(0, 9)
    )
    def add(self, key: str, priority: Priority, delay: int) -> None:
        due = self.clock.now + delay
        known = self.model.asked.get(key)
        if known is not None:
            priority, due = min(known.priority, priority), min(known.due, due)
        self.model.asked[key] = Asked(priority, due)
        self.queue.add(key, Priority(priority), delay)

    @rule(seconds=st.integers(1, 5))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def get(self) -> None:
        expected = self._due()
        key = self.queue.get_nowait()
        assert (key is None) == (not expected)
        if key is None:
            return
        rank = min((asked.priority, asked.due) for asked in expected.values())
        assert (expected[key].priority, expected[key].due) == rank
        assert key not in self.model.active
        del self.model.asked[key]
        self.model.active.add(key)

    @rule(number=st.integers(0, 5))
    def done(self, number: int) -> None:
        if not self.model.active:
            return
        key = sorted(self.model.active)[number % len(self.model.active)]
        self.model.active.discard(key)
        self.queue.done(key)

    def _due(self) -> dict[str, Asked]:
        free = {k: a for k, a in self.model.asked.items() if k not in self.model.active}
        return {key: asked for key, asked in free.items() if asked.due <= self.clock.now}

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.queue) == len(self.model.asked)
        assert self.queue._active == self.model.active

    def teardown(self) -> None:
        while self.model.active:
            self.done(0)
        self.clock.now += 100
        left = set()
        while (key := self.queue.get_nowait()) is not None:
            left.add(key)
        assert left == self.model.asked.keys()


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
