import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from reconciler.core import naming
from reconciler.core.errors import EngineError, EngineTimeout, EngineUnavailable
from reconciler.core.observed import Container, Phase, Volume
from reconciler.core.priority import Priority
from reconciler.engine.protocol import EventKind, Listing
from reconciler.observe.cache import Cache
from reconciler.observe.informer import Informer
from reconciler.observe.owners import Owners
from reconciler.observe.ownership import Ownership
from reconciler.telemetry import events
from tests.fakes.engine import FakeEngine
from tests.fakes.host import FakeHost, labels
from tests.simulation.stage import LogCapture

RESYNC = 60.0


def add(host: FakeHost, name: str, phase: Phase = Phase.RUNNING) -> str:
    return host.add_container(f"c-{name}", labels("default", name), phase=phase)


class EverythingIsOurs(Ownership):
    """Classifies every object as ours."""

    def __init__(self) -> None: ...

    async def admit(self, container: Container) -> bool:  # noqa: ARG002
        return True

    def admit_volume(self, volume: Volume) -> Volume | None:
        return volume

    def volumes_of(self, sandbox: str) -> tuple[str, ...]:  # noqa: ARG002
        return ()


class NobodyElse(Owners):
    """Finds no other daemon."""

    def __init__(self) -> None: ...

    async def settle(
        self,
        listing: Listing,
        again: Callable[[], Awaitable[Listing]],  # noqa: ARG002
    ) -> Listing:
        return listing


class Watcher:
    """An informer and the keys that it enqueued."""

    def __init__(self, wanted: tuple[str, ...] = ()) -> None:
        self.host = FakeHost()
        self.engine = FakeEngine(self.host)
        self.asked: list[str] = []
        self.synced_first = 0
        loop = asyncio.get_running_loop()
        self.notes = LogCapture(loop.time)
        self.cache = Cache(self.engine, loop.time, ownership=EverythingIsOurs(), claimed_volumes={})
        self.removals = 0
        self.wanted = wanted
        self.informer = Informer(
            self.engine,
            cache=self.cache,
            owners=NobodyElse(),
            enqueue=self._enqueue,
            enqueue_all=self._enqueue_all,
            is_wanted=lambda key: key in wanted,
            on_first_sync=self._on_first_sync,
            on_removed=self._on_removed,
            clock=loop.time,
            resync_interval=RESYNC,
            recorder=self.notes,
        )

    def _enqueue(self, key: str, _priority: Priority) -> None:
        self.asked.append(key)

    def _enqueue_all(self) -> None:
        self.asked += [*self.cache.keys() | set(self.wanted)]

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


async def test_first_sync_reports_once_after_the_inspection(watcher: Watcher):
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


async def test_event_is_enqueued_at_once(watcher: Watcher):
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
async def test_changes_during_a_disconnect_are_enqueued(watcher: Watcher, change: str):
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


async def test_ended_stream_is_followed_by_a_pause(watcher: Watcher):
    async with watcher.running():
        await watcher.synced()
        watcher.host.end_streams()
        while watcher.informer.synced.is_set():  # noqa: ASYNC110 - a turn of simulated time
            await asyncio.sleep(0.001)
        assert "event stream" in watcher.informer.error


async def test_dead_engine_is_logged_once_a_minute(watcher: Watcher):
    watcher.host.down = True
    async with watcher.running():
        await asyncio.sleep(600)
        assert "down" in watcher.informer.error
    assert len(watcher.notes.logged(events.EngineLost)) <= 11


async def test_connected_is_logged_once_after_each_loss(watcher: Watcher):
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
        (line,) = watcher.notes.logged(events.EngineConnected)
        assert line["version"]


@pytest.mark.parametrize("error", [EngineError("forbidden"), EngineUnavailable("gone")])
async def test_engine_without_info_is_connected(watcher, error):
    watcher.engine.fail_next("info", error)
    async with watcher.running():
        await watcher.synced()
    (line,) = watcher.notes.logged(events.EngineConnected)
    assert "version" not in line


@pytest.mark.parametrize("error", [EngineError("broken"), EngineUnavailable("reset")])
async def test_one_failed_relist_is_no_lost_engine(watcher: Watcher, error: Exception):
    async with watcher.running():
        await watcher.synced()
        for _ in range(2):
            watcher.engine.fail_next("list", error)
            await asyncio.sleep(3 * RESYNC)
    assert not watcher.notes.logged(events.EngineLost)
    assert len(watcher.notes.logged(events.EngineListFailed)) == 2


async def test_stream_that_ends_at_once_floods_neither_log_nor_engine(watcher: Watcher):
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
    assert len(watcher.notes.logged(events.EngineStreamLost)) <= 11
    assert watcher.engine.count("list") < 150


@pytest.mark.parametrize("error", [EngineError("broken"), EngineTimeout("hangs")])
async def test_uninspectable_container_blocks_no_other(watcher: Watcher, error: Exception):
    broken, _ = add(watcher.host, "alice"), add(watcher.host, "bob")
    refuse_inspection(watcher.engine, broken, error)
    async with watcher.running():
        await asyncio.wait_for(watcher.informer.synced.wait(), 60)
        assert watcher.phase("bob") is Phase.RUNNING
        assert "alice" in watcher.asked
        assert not watcher.cache.is_clean("alice")
        with pytest.raises(EngineError):
            await watcher.cache.refresh("alice")


async def test_engine_lost_during_the_observation_is_awaited(watcher: Watcher):
    add(watcher.host, "alice")
    watcher.engine.fail_next("inspect", EngineUnavailable("gone"))
    async with watcher.running():
        await asyncio.wait_for(watcher.informer.synced.wait(), 60)
        assert watcher.phase("alice") is Phase.RUNNING


async def test_observation_raises_the_error_of_the_engine(watcher: Watcher):
    add(watcher.host, "alice")
    watcher.engine.fail_next("inspect", EngineError("broken"))
    with pytest.raises(EngineError, match="broken"):
        await watcher.informer.sync_once()


async def test_hanging_list_stops_only_the_collection(watcher: Watcher):
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


async def test_resync_enqueues_records_without_containers():
    watcher = Watcher(wanted=("nothing-there",))
    async with watcher.running():
        await watcher.synced()
        await watcher.told("nothing-there", within=RESYNC + 1)
        watcher.asked.clear()
        watcher.host.end_streams()
        await watcher.told("nothing-there", within=10)


async def test_stale_list_removes_nothing(watcher: Watcher):
    own = add(watcher.host, "alice")
    watcher.engine.list = empty_list
    async with watcher.running():
        await watcher.synced()
        watcher.cache.mark_dirty("alice", own)
        await watcher.cache.refresh("alice")
        await watcher.told("alice", within=RESYNC + 1)
        assert watcher.phase("alice") is Phase.RUNNING


async def test_new_volume_survives_an_older_list(watcher: Watcher):
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
    """Return the name of Alice's workspace, once it is cached."""
    name = naming.volume_name("", "alice")
    watcher.host.add_volume(name, labels("default", "alice"))
    async with watcher.running():
        await watcher.synced()
        yield name


async def test_destroyed_volume_is_enqueued_at_once(watcher: Watcher):
    async with with_volume(watcher) as name:
        watcher.host.remove_volume(name)
        assert await watcher.told("alice", within=1) < 0.1
        assert watcher.cache.observed("alice").volumes == ()


async def test_recreated_volume_survives_a_late_event(watcher: Watcher):
    async with with_volume(watcher) as name:
        watcher.host._publish(EventKind.VOLUME, name, "destroy", {}, "")
        await watcher.told("alice", within=1)
        assert [volume.name for volume in watcher.cache.observed("alice").volumes] == [name]


async def test_failed_volume_inspection_stays_dirty(watcher: Watcher):
    async with with_volume(watcher) as name:
        watcher.engine.fail_next("inspect_volume", EngineError("no"))
        watcher.host.remove_volume(name)
        with pytest.raises(EngineError):
            await watcher.told("alice", within=1)
        assert not watcher.cache.is_clean("alice")
        await watcher.cache.refresh("alice")
        assert watcher.cache.is_clean("alice")
        assert watcher.cache.observed("alice").volumes == ()


async def test_unknown_outcome_is_read_from_the_engine(watcher: Watcher):
    async with watcher.running():
        await watcher.synced()
        watcher.host.subscribers.clear()
        add(watcher.host, "alice")
        watcher.cache.request_listing("alice")
        await watcher.cache.refresh("alice")
        assert watcher.phase("alice") is Phase.RUNNING


async def test_failed_inspection_stays_dirty(watcher: Watcher):
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


async def test_reconnect_leaves_inspections_to_the_passes(
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


async def test_removed_sandboxes_leave_nothing(watcher: Watcher):
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


async def test_cancellation_works_when_the_stream_ends():
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
