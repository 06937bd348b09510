import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from reconciler.core import naming
from reconciler.core.errors import EngineError, EngineTimeout, EngineUnavailable
from reconciler.core.model import Container, Phase, Volume
from reconciler.core.priority import Priority
from reconciler.engine.protocol import EventKind, Listing
from reconciler.observe.cache import Cache
from reconciler.observe.informer import Informer
from reconciler.observe.owners import Owners
from reconciler.observe.ownership import Ownership
from reconciler.telemetry import events
from tests.fakes.engine import FakeEngine
from tests.fakes.host import FakeHost, labels
from tests.simulation.stage import Notebook

RESYNC = 60.0


def add(host: FakeHost, name: str, phase: Phase = Phase.RUNNING) -> str:
    return host.add_container(f"c-{name}", labels("default", name), phase=phase)


class EverythingIsOurs(Ownership):
    """Whose an object is does not matter here."""

    def __init__(self) -> None: ...

    async def admit(self, container: Container) -> bool:  # noqa: ARG002
        return True

    def admit_volume(self, volume: Volume) -> Volume | None:
        return volume

    def volumes_of(self, sandbox: str) -> tuple[str, ...]:  # noqa: ARG002
        return ()


class NobodyElse(Owners):
    """One daemon alone."""

    def __init__(self) -> None: ...

    async def settle(
        self,
        listing: Listing,
        again: Callable[[], Awaitable[Listing]],  # noqa: ARG002
    ) -> Listing:
        return listing


class Watcher:
    """An informer, and what it asked to be worked on."""

    def __init__(self, wanted: tuple[str, ...] = ()) -> None:
        self.host = FakeHost()
        self.engine = FakeEngine(self.host)
        self.asked: list[str] = []
        self.synced_first = 0
        loop = asyncio.get_running_loop()
        self.notes = Notebook(loop.time)
        self.cache = Cache(self.engine, loop.time, ownership=EverythingIsOurs(), claimed_volumes={})
        self.removals = 0
        self.informer = Informer(
            self.engine,
            cache=self.cache,
            owners=NobodyElse(),
            enqueue=self._enqueue,
            wanted=lambda: wanted,
            is_wanted=lambda key: key in wanted,
            on_first_sync=self._on_first_sync,
            on_removed=self._on_removed,
            clock=loop.time,
            resync_interval=RESYNC,
            recorder=self.notes,
        )

    def _enqueue(self, key: str, _priority: Priority) -> None:
        self.asked.append(key)

    def _on_first_sync(self) -> None:
        self.synced_first += 1

    def _on_removed(self) -> None:
        self.removals += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.informer.run())
        try:
            yield
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def synced(self) -> None:
        await self.informer.synced.wait()
        self.asked.clear()

    async def told(self, key: str, within: float) -> float:
        """How long it took until the key was asked for."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(within):
            while key not in self.asked:  # noqa: ASYNC110 - a turn of simulated time
                await asyncio.sleep(0.05)
        await self.cache.refresh(key)
        return loop.time() - began

    def phase(self, key: str) -> Phase | None:
        containers = self.cache.observed(key).containers
        return containers[0].phase if containers else None


@pytest.fixture
async def watcher() -> Watcher:
    return Watcher()


async def test_the_first_sync_knows_what_is_there_and_tells_it_once(watcher: Watcher):
    add(watcher.host, "alice")
    watcher.host.add_container("foreign", {})
    watcher.host.add_volume("v", labels("default", "bob"))
    async with watcher.running():
        await watcher.informer.synced.wait()
        assert watcher.phase("alice") is Phase.RUNNING
        assert watcher.cache.keys() == {"alice", "bob"}
        assert sorted(watcher.asked) == ["alice", "bob"]
        watcher.host.end_streams()
        await watcher.told("alice", within=10)
    assert watcher.synced_first == 1


async def test_an_event_is_told_at_once(watcher: Watcher):
    add(watcher.host, "alice")
    async with watcher.running():
        await watcher.synced()
        watcher.host.kill("c-alice")
        assert await watcher.told("alice", within=1) < 0.1
        assert watcher.phase("alice") is Phase.EXITED


@pytest.mark.parametrize("change", ["kill", "remove", "docker_pause"])
async def test_a_lost_event_is_found_by_the_next_relist(watcher: Watcher, change: str):
    add(watcher.host, "alice")
    async with watcher.running():
        await watcher.synced()
        watcher.host.subscribers.clear()
        getattr(watcher.host, change)("c-alice")
        assert await watcher.told("alice", within=2 * RESYNC) > 1
        assert watcher.phase("alice") is not Phase.RUNNING


async def test_a_lost_create_is_found_by_the_next_relist(watcher: Watcher):
    async with watcher.running():
        await watcher.synced()
        watcher.host.subscribers.clear()
        add(watcher.host, "alice")
        await watcher.told("alice", within=2 * RESYNC)
        assert watcher.phase("alice") is Phase.RUNNING


@pytest.mark.parametrize("change", ["kill", "remove"])
async def test_what_changed_while_the_engine_was_away_is_told(watcher: Watcher, change: str):
    add(watcher.host, "alice")
    async with watcher.running():
        await watcher.synced()
        watcher.host.down = True
        watcher.host.end_streams()
        await asyncio.sleep(30)
        assert not watcher.informer.synced.is_set()
        assert not watcher.informer.complete
        assert watcher.phase("alice") is Phase.RUNNING  # unknown is not dead
        getattr(watcher.host, change)("c-alice")
        watcher.host.down = False
        await watcher.told("alice", within=10)
        assert watcher.phase("alice") is not Phase.RUNNING
        assert watcher.informer.complete


async def test_a_stream_that_ended_is_a_reason_to_wait(watcher: Watcher):
    async with watcher.running():
        await watcher.synced()
        watcher.host.end_streams()
        while watcher.informer.synced.is_set():  # noqa: ASYNC110 - a turn of simulated time
            await asyncio.sleep(0.001)
        assert "event stream" in watcher.informer.error


async def test_a_dead_engine_is_complained_of_once_a_minute(watcher: Watcher):
    watcher.host.down = True
    async with watcher.running():
        await asyncio.sleep(600)
        assert "down" in watcher.informer.error
    assert len(watcher.notes.said(events.EngineLost)) <= 11


async def test_connected_follows_each_lost_and_nothing_else(watcher: Watcher):
    async with watcher.running():
        for _ in range(5):
            await watcher.synced()
            await asyncio.sleep(3)
            watcher.host.end_streams()
            await asyncio.sleep(1)
            watcher.host.down = True
            watcher.host.end_streams()
            await asyncio.sleep(5)
            watcher.host.down = False
        await watcher.synced()
    pair = {events.EngineConnected, events.EngineLost}
    said = [event for event, fields in watcher.notes.lines if event in pair]
    assert said == [events.EngineConnected, *[events.EngineLost, events.EngineConnected] * 5]


async def test_connected_is_logged_before_any_work(watcher: Watcher):
    add(watcher.host, "alice")
    async with watcher.running():
        while not watcher.asked:  # noqa: ASYNC110 - a turn of simulated time
            await asyncio.sleep(0)
        (line,) = watcher.notes.said(events.EngineConnected)
        assert line["version"]


@pytest.mark.parametrize("error", [EngineError("forbidden"), EngineUnavailable("gone")])
async def test_an_engine_that_does_not_say_who_it_is_is_connected_too(watcher, error):
    watcher.engine.fail_next("info", error)
    async with watcher.running():
        await watcher.synced()
    (line,) = watcher.notes.said(events.EngineConnected)
    assert "version" not in line


@pytest.mark.parametrize("error", [EngineError("broken"), EngineUnavailable("reset")])
async def test_one_failed_relist_is_no_lost_engine(watcher: Watcher, error: Exception):
    async with watcher.running():
        await watcher.synced()
        for _ in range(2):
            watcher.engine.fail_next("list", error)
            await asyncio.sleep(3 * RESYNC)
    assert not watcher.notes.said(events.EngineLost)
    assert len(watcher.notes.said(events.EngineListFailed)) == 2


async def test_a_stream_that_always_ends_at_once_floods_neither_log_nor_engine(watcher: Watcher):
    watcher.engine.latency["events"] = 0.001

    async def cut() -> None:
        while True:
            await watcher.informer.synced.wait()
            watcher.host.end_streams()
            await asyncio.sleep(0.001)

    async with watcher.running():
        cutting = asyncio.create_task(cut())
        await asyncio.sleep(600)
        cutting.cancel()
    assert len(watcher.notes.said(events.EngineStreamLost)) <= 11
    assert watcher.engine.count("list") < 150


@pytest.mark.parametrize("error", [EngineError("broken"), EngineTimeout("hangs")])
async def test_one_container_that_cannot_be_inspected_holds_no_other_back(
    watcher: Watcher, error: Exception
):
    broken, _ = add(watcher.host, "alice"), add(watcher.host, "bob")
    refuse_inspection(watcher.engine, broken, error)
    async with watcher.running():
        await asyncio.wait_for(watcher.informer.synced.wait(), 60)
        assert watcher.phase("bob") is Phase.RUNNING
        assert "alice" in watcher.asked
        assert not watcher.cache.knows("alice")
        with pytest.raises(EngineError):
            await watcher.cache.refresh("alice")


async def test_an_engine_that_goes_while_it_is_observed_is_waited_for(watcher: Watcher):
    add(watcher.host, "alice")
    watcher.engine.fail_next("inspect", EngineUnavailable("gone"))
    async with watcher.running():
        await asyncio.wait_for(watcher.informer.synced.wait(), 60)
        assert watcher.phase("alice") is Phase.RUNNING


async def test_one_observation_fails_with_the_engines_own_error(watcher: Watcher):
    add(watcher.host, "alice")
    watcher.engine.fail_next("inspect", EngineError("broken"))
    with pytest.raises(EngineError, match="broken"):
        await watcher.informer.sync_once()


async def test_a_list_that_hangs_stops_the_collecting_but_not_the_work(watcher: Watcher):
    add(watcher.host, "alice")
    async with watcher.running():
        await watcher.synced()
        watcher.engine.fail_next("list", EngineTimeout("hangs"), times=1)
        await asyncio.sleep(RESYNC + 1)
        assert not watcher.informer.complete
        assert watcher.informer.synced.is_set()
        watcher.host.kill("c-alice")
        await watcher.told("alice", within=1)
        await asyncio.sleep(RESYNC)
        assert watcher.informer.complete


async def test_every_record_is_looked_at_again_though_nothing_of_it_is_there():
    watcher = Watcher(wanted=("nothing-there",))
    async with watcher.running():
        await watcher.synced()
        await watcher.told("nothing-there", within=RESYNC + 1)
        watcher.asked.clear()
        watcher.host.end_streams()
        await watcher.told("nothing-there", within=10)


async def test_a_list_that_lags_behind_takes_nothing_away(watcher: Watcher):
    own = add(watcher.host, "alice")
    watcher.engine.list = empty_list
    async with watcher.running():
        await watcher.synced()
        watcher.cache.touch("alice", own)
        await watcher.cache.refresh("alice")
        await watcher.told("alice", within=RESYNC + 1)
        assert watcher.phase("alice") is Phase.RUNNING


async def test_a_volume_that_was_just_made_is_not_hidden_by_an_older_list(watcher: Watcher):
    async with watcher.running():
        await watcher.synced()
        await asyncio.sleep(RESYNC - 1)
        name = naming.volume_name("", "alice")
        await watcher.engine.create_volume(name, labels("default", "alice"))
        (volume,) = watcher.host.volumes_of("default")
        watcher.cache.put_volume(volume)
        watcher.engine.list = empty_list
        await asyncio.sleep(2)
        assert watcher.cache.observed("alice").volumes == (volume,)
        await asyncio.sleep(2 * RESYNC)
        assert watcher.cache.observed("alice").volumes == ()


@asynccontextmanager
async def with_volume(watcher: Watcher) -> AsyncIterator[str]:
    """Alice's workspace, by name, once it is known."""
    name = naming.volume_name("", "alice")
    watcher.host.add_volume(name, labels("default", "alice"))
    async with watcher.running():
        await watcher.synced()
        yield name


async def test_a_volume_that_is_destroyed_is_told_at_once(watcher: Watcher):
    async with with_volume(watcher) as name:
        watcher.host.remove_volume(name)
        assert await watcher.told("alice", within=1) < 0.1
        assert watcher.cache.observed("alice").volumes == ()


async def test_a_volume_that_was_made_again_outlives_a_late_word_of_its_end(watcher: Watcher):
    async with with_volume(watcher) as name:
        watcher.host._tell(EventKind.VOLUME, name, "destroy", {}, "")
        await watcher.told("alice", within=1)
        assert [volume.name for volume in watcher.cache.observed("alice").volumes] == [name]


async def test_a_volume_that_could_not_be_looked_at_still_is_to_be(watcher: Watcher):
    async with with_volume(watcher) as name:
        watcher.engine.fail_next("inspect_volume", EngineError("no"))
        watcher.host.remove_volume(name)
        with pytest.raises(EngineError):
            await watcher.told("alice", within=1)
        assert not watcher.cache.knows("alice")
        await watcher.cache.refresh("alice")
        assert watcher.cache.knows("alice")
        assert watcher.cache.observed("alice").volumes == ()


async def test_a_change_of_unknown_outcome_is_looked_up(watcher: Watcher):
    async with watcher.running():
        await watcher.synced()
        watcher.host.subscribers.clear()
        add(watcher.host, "alice")
        watcher.cache.doubt("alice")
        await watcher.cache.refresh("alice")
        assert watcher.phase("alice") is Phase.RUNNING


async def test_what_could_not_be_inspected_still_is_to_be(watcher: Watcher):
    add(watcher.host, "alice")
    async with watcher.running():
        await watcher.synced()
        watcher.host.kill("c-alice")
        await asyncio.sleep(0.1)
        watcher.engine.fail_next("inspect", EngineTimeout("hangs"))
        with pytest.raises(EngineTimeout):
            await watcher.cache.refresh("alice")
        await watcher.cache.refresh("alice")
        assert watcher.phase("alice") is Phase.EXITED


async def test_a_reconnect_does_not_take_an_inspection_from_the_pass_that_waits_for_it(
    watcher: Watcher,
):
    add(watcher.host, "alice")
    async with watcher.running():
        await watcher.synced()
        watcher.engine.latency["inspect"] = 1.0
        watcher.host.end_streams()
        await watcher.informer.synced.wait()
        await asyncio.sleep(0.5)
        watcher.host.kill("c-alice")
        await asyncio.sleep(0)
        await watcher.cache.refresh("alice")
        assert watcher.phase("alice") is Phase.EXITED


async def test_nothing_is_kept_of_what_is_gone(watcher: Watcher):
    async with watcher.running():
        await watcher.synced()
        for number in range(20):
            add(watcher.host, f"job-{number}")
            await watcher.told(f"job-{number}", within=3)
            watcher.host.remove(f"c-job-{number}")
            await asyncio.sleep(0.1)
            await watcher.cache.refresh(f"job-{number}")
    assert not watcher.cache._by_key
    assert not watcher.cache._dirty


async def test_it_ends_when_told_to_also_in_the_moment_that_the_stream_ends():
    for turns in range(6):
        watcher = Watcher()
        task = asyncio.create_task(watcher.informer.run())
        await watcher.synced()
        await asyncio.sleep(1)
        watcher.host.end_streams()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=60)
        assert task.cancelled(), turns


def refuse_inspection(engine: FakeEngine, refused: str, error: Exception) -> None:
    inspect = engine.inspect

    async def refusing(container_id: str):
        if container_id == refused:
            raise error
        return await inspect(container_id)

    engine.inspect = refusing


async def empty_list() -> Listing:
    return Listing((), ())
