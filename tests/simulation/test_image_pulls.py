import asyncio

import pytest

from reconciler.core.errors import EngineUnavailable, PullFailed, SettingsError
from reconciler.core.snapshot import ImageState
from reconciler.engine.protocol import PullProgress
from reconciler.resources.image_pulls import ImagePuller
from reconciler.telemetry import events
from tests.fakes.engine import FakeEngine
from tests.simulation.stage import LogCapture

ONE, TWO = "one:1", "two:1"


class Pulls:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.engine = FakeEngine()
        self.engine.host.registry |= {ONE, TWO}
        self.engine.latency["pull"] = 10.0
        self.done: list[tuple[str, str, str]] = []
        self.notes = LogCapture(loop.time)
        self.puller = ImagePuller(
            self.engine, on_done=self._on_done, recorder=self.notes, clock=loop.time
        )

    def _on_done(self, key: str, image: str, error: Exception | None) -> None:
        self.done.append((key, image, type(error).__name__ if error else "well"))


@pytest.fixture
async def pulls():
    made = Pulls()
    yield made
    await made.puller.close()


async def test_one_pull_serves_all_waiting_keys(pulls: Pulls):
    for key in "abc":
        pulls.puller.request(key, ONE)
        assert pulls.puller.state(key, ONE) is ImageState.PULLING
    await asyncio.sleep(11)
    assert pulls.engine.count("pull") == 1
    assert pulls.done == [(key, ONE, "well") for key in "abc"]
    assert pulls.puller.state("a", ONE) is ImageState.FRESH
    assert pulls.puller.state("a", TWO) is ImageState.UNKNOWN


@pytest.mark.parametrize("error", [PullFailed("no"), EngineUnavailable("gone")])
async def test_failed_pull_is_reported_to_all_waiting_keys(pulls: Pulls, error: Exception):
    pulls.engine.fail_next("pull", error)
    pulls.puller.request("a", ONE)
    pulls.puller.request("b", ONE)
    await asyncio.sleep(11)
    assert pulls.done == [(key, ONE, type(error).__name__) for key in "ab"]
    assert pulls.puller.state("a", ONE) is ImageState.UNKNOWN
    pulls.puller.request("a", ONE)
    await asyncio.sleep(11)
    assert pulls.done[2:] == [("a", ONE, "well")]


async def test_bug_in_a_pull_ends_the_wait(pulls: Pulls):
    pulls.engine.fail_next("pull", ZeroDivisionError("a bug"))
    pulls.puller.request("a", ONE)
    await asyncio.sleep(11)
    assert pulls.done == [("a", ONE, "PullFailed")]
    assert pulls.puller.state("a", ONE) is ImageState.UNKNOWN


async def test_newer_edit_cancels_the_pull(pulls: Pulls):
    pulls.puller.request("a", ONE)
    await asyncio.sleep(1)
    pulls.puller.request("a", TWO)
    await asyncio.sleep(20)
    assert pulls.done == [("a", TWO, "well")]
    assert ONE not in pulls.engine.host.images


async def test_pull_with_another_waiting_key_continues(pulls: Pulls):
    pulls.puller.request("a", ONE)
    pulls.puller.request("b", ONE)
    await asyncio.sleep(1)
    pulls.puller.release("a", None)
    await asyncio.sleep(20)
    assert pulls.done == [("b", ONE, "well")]


async def test_released_key_leaves_no_image_state(pulls: Pulls):
    for number in range(50):
        pulls.puller.request(f"job-{number}", ONE)
        pulls.puller.release(f"job-{number}", None)
    await asyncio.sleep(1)
    assert not pulls.puller._states
    assert not pulls.puller._pulls


async def test_request_after_a_release_starts_a_pull(pulls: Pulls):
    pulls.puller.request("a", ONE)
    await asyncio.sleep(1)
    pulls.puller.release("a", None)
    pulls.puller.request("a", ONE)
    await asyncio.sleep(20)
    assert pulls.done == [("a", ONE, "well")]


async def test_close_cancels_the_pulls(pulls: Pulls):
    pulls.puller.request("a", ONE)
    await asyncio.sleep(1)
    await pulls.puller.close()
    await asyncio.sleep(20)
    assert pulls.done == []


async def test_pull_progress_is_rate_limited(pulls: Pulls):
    async def slow(_image, progress):
        for step in range(1000):
            await asyncio.sleep(0.1)
            progress(PullProgress(0, 1, step, 1000))

    pulls.engine.pull = slow
    pulls.puller.request("a", ONE)
    await asyncio.sleep(101)
    assert 15 <= len(pulls.notes.logged(events.PullProgress)) <= 21
    assert len(pulls.notes.logged(events.PullDone, image=ONE)) == 1


async def test_repeated_pull_logs_its_start_once(pulls: Pulls):
    pulls.engine.latency["pull"] = 1.0
    for _ in range(30):
        pulls.engine.fail_next("pull", PullFailed(f"no route, request {_:012x}"))
        pulls.puller.request("a", ONE)
        await asyncio.sleep(4)
    assert len(pulls.notes.logged(events.PullStarted)) == 1
    first, *others = pulls.notes.logged(events.PullFailed)
    assert "repeated" not in first
    assert first["sandboxes"] == ["a"]
    assert sum(line["repeated"] for line in others) >= 15
    assert len(others) <= 2
    pulls.puller.request("a", ONE)
    await asyncio.sleep(4)
    assert len(pulls.notes.logged(events.PullDone)) == 1
    pulls.engine.fail_next("pull", PullFailed("no"))
    pulls.puller.request("a", ONE)
    await asyncio.sleep(4)
    assert "repeated" not in pulls.notes.logged(events.PullFailed)[-1]


async def test_cancelled_pull_is_logged(pulls: Pulls):
    pulls.puller.request("a", ONE)
    await asyncio.sleep(1)
    pulls.puller.release("a", None)
    await asyncio.sleep(1)
    assert len(pulls.notes.logged(events.PullCancelled, image=ONE)) == 1


async def test_unusable_credentials_are_an_error_of_the_pull(pulls: Pulls):
    pulls.engine.fail_next("pull", SettingsError("/root/.docker/config.json: not JSON"))
    pulls.puller.request("a", ONE)
    await asyncio.sleep(11)
    (failed,) = pulls.notes.logged(events.PullFailed)
    assert failed["error"] == f"{ONE}: /root/.docker/config.json: not JSON"
    assert not pulls.notes.logged(events.TaskFailed)
