import asyncio
import errno
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from reconciler import threads
from reconciler.threads import MAX_HUNG, BoundedCalls, in_thread

# Seconds that a call gets; one that hangs here takes until its test ends.
SHORT = 0.05
LONG = 60.0


class Mount:
    """Files that answer with their name, except those that hang until ``release``."""

    def __init__(self) -> None:
        self.hanging: set[str] = set()
        self.asked: list[str] = []
        self._gate = threading.Event()

    def read(self, name: str) -> str:
        self.asked.append(name)
        if name in self.hanging:
            self._gate.wait(LONG)
        return name

    def release(self) -> None:
        self.hanging.clear()
        self._gate.set()


@pytest.fixture
async def mount() -> AsyncIterator[Mount]:
    made = Mount()
    yield made
    made.release()


async def until_none_hangs(calls: BoundedCalls) -> None:
    async with asyncio.timeout(LONG):
        while calls.hung:  # noqa: ASYNC110 - the thread ends on its own
            await asyncio.sleep(0.01)


async def test_a_call_answers_or_raises():
    calls = BoundedCalls(LONG)
    assert await calls.run("a", lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        await calls.run("a", lambda: 1 / 0)
    assert await in_thread(sum, (1, 2)) == 3


async def test_a_hung_call_is_not_repeated_until_it_returns(mount: Mount):
    calls = BoundedCalls(SHORT)
    mount.hanging.add("a")
    for _ in range(3):
        with pytest.raises(TimeoutError, match="no answer within"):
            await calls.run("a", mount.read, "a")
    assert mount.asked == ["a"]
    assert await BoundedCalls(LONG).run("b", mount.read, "b") == "b"
    mount.release()
    await until_none_hangs(calls)
    assert await BoundedCalls(LONG).run("a", mount.read, "a") == "a"


async def test_a_call_whose_caller_left_is_waited_for_by_the_next(mount: Mount):
    calls = BoundedCalls(LONG)
    mount.hanging.add("a")
    first = asyncio.create_task(calls.run("a", mount.read, "a"))
    while not mount.asked:  # noqa: ASYNC110 - the thread starts on its own
        await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(calls.run("a", mount.read, "a"))
    await asyncio.sleep(0.05)
    assert mount.asked == ["a"]
    mount.release()
    assert await second == "a"
    assert mount.asked == ["a", "a"]


async def test_one_thread_does_many_calls(mount: Mount):
    names = [str(number) for number in range(500)]
    before = set(threading.enumerate())
    seen: set[threading.Thread] = set()

    def read(name: str) -> str:
        seen.add(threading.current_thread())
        return mount.read(name)

    assert await BoundedCalls(LONG).each(names, read) == dict(zip(names, names, strict=True))
    assert len(seen - before) == 1


async def test_calls_that_hang_hold_up_no_other(mount: Mount):
    calls = BoundedCalls(SHORT * 4)
    mount.hanging = {"b", "d", "f"}
    for _ in range(3):
        found = await calls.each("abcdefg", mount.read)
        answered = {name for name, it in found.items() if not isinstance(it, OSError)}
        assert answered == set("aceg")
        assert calls.hung == {"b", "d", "f"}
    assert mount.asked.count("b") == mount.asked.count("d") == mount.asked.count("f") == 1
    mount.release()
    await until_none_hangs(calls)
    assert await BoundedCalls(LONG).each("abc", mount.read) == {"a": "a", "b": "b", "c": "c"}


async def test_no_more_threads_hang_than_allowed(mount: Mount):
    calls = BoundedCalls(SHORT)
    names = [str(number) for number in range(2 * MAX_HUNG)]
    mount.hanging = set(names)
    for _ in range(2):
        found = await calls.each(names, mount.read)
        assert all(isinstance(it, TimeoutError) for it in found.values())
    # One thread that does many calls can hang in one more.
    assert len(calls.hung) == len(mount.asked) <= MAX_HUNG + 2


async def test_each_hands_an_error_to_its_key_and_raises_a_defect():
    def read(name: str) -> str:
        if name == "denied":
            raise PermissionError(errno.EACCES, "Permission denied")
        if name == "defect":
            raise ZeroDivisionError
        return name

    calls = BoundedCalls(LONG)
    found = await calls.each(["a", "denied", "b"], read)
    assert (found["a"], found["b"]) == ("a", "b")
    assert isinstance(found["denied"], PermissionError)
    with pytest.raises(ZeroDivisionError):
        await calls.each(["a", "defect"], read)


@contextmanager
def no_thread_starts(patch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with patch.context() as inside:
        inside.setattr(threads.threading.Thread, "start", refuse)
        yield


async def test_without_a_thread_a_call_fails_and_the_next_one_works(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
):
    calls = BoundedCalls(LONG)
    with no_thread_starts(monkeypatch):
        with pytest.raises(OSError, match="no more threads"):
            await calls.run("a", mount.read, "a")
        found = await calls.each("ab", mount.read)
        assert [type(it) for it in found.values()] == [BlockingIOError, BlockingIOError]
    assert await calls.run("a", mount.read, "a") == "a"


def test_a_hung_call_does_not_keep_the_process_from_ending():
    script = """
import asyncio, threading
from reconciler.threads import BoundedCalls

async def main():
    calls = BoundedCalls(0.01)
    found = await calls.each("ab", lambda _: threading.Event().wait())
    print(sorted(found))

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=90
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "['a', 'b']\n", "")
