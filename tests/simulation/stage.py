"""A complete manager over a fake host in memory, in simulated time, with an edited desired file."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Self

import yaml
from structlog.contextvars import get_contextvars

from reconciler.control.operations import Operations
from reconciler.control.queries import Queries
from reconciler.core import naming
from reconciler.core.observed import Container, Phase
from reconciler.liveness import Liveness
from reconciler.manifest.sync import SyncResult
from reconciler.resources.disk_guard import Space
from reconciler.settings import Settings
from reconciler.store.store import Store
from reconciler.telemetry import events
from reconciler.telemetry.recorder import Recorder
from reconciler.telemetry.supervision import supervise
from reconciler.wiring import Manager, build
from tests.fakes.engine import ROOT as ENGINE_ROOT
from tests.fakes.engine import FakeEngine
from tests.fakes.host import IMAGE, FakeHost, labels
from tests.simulation.simulated import EPOCH, SimulatedClock

GIB = 1 << 30
PREFIX = "oh-agent-server-"
DAY = 86400.0
PLAIN: Mapping[str, Any] = {
    "image": IMAGE,
    "workspace": {"path": "/workspace"},
    "ports": [{"name": "HTTP", "container_port": 8000}],
}
# Root tasks that these tests leave out: edits are read when a test says so.
_ABSENT = {"manifest-watch"}


class LogCapture(Recorder):
    """Keeps every log line, before redaction."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.lines: list[tuple[type[events.Event], dict[str, Any]]] = []

    def log(self, event: events.Event) -> None:
        self.lines.append((type(event), {**get_contextvars(), **event.fields()}))

    def logged(self, event: type[events.Event], **fields: Any) -> list[dict[str, Any]]:
        """The lines of this event that have these fields, in order."""
        lines = [line for said, line in self.lines if said is event]
        return [line for line in lines if fields.items() <= line.items()]


class Disks:
    """Free space of the state disk and the engine disk, in GiB; each has 100 GiB.

    The images of the host use space of the engine disk.
    """

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.state, self.engine = 50.0, 50.0
        self.error: OSError | None = None
        self.latency = 0.0

    async def __call__(self, path: Path) -> Space:
        await asyncio.sleep(self.latency)
        if self.error:
            raise self.error
        engine = path == Path(ENGINE_ROOT)
        taken = len(self.host.image_ids()) * self.host.image_size
        free = int(self.engine * GIB) - taken if engine else int(self.state * GIB)
        return Space(max(free, 0), 100 * GIB, device=int(engine))


class Stage(AbstractAsyncContextManager["Stage"]):
    """One host and state directory, and a manager that can be restarted on them.

    Three clocks, and each can jump alone: ``wall`` and ``monotonic`` are the daemon's,
    ``engine_clock`` gives the engine's dates.
    """

    def __init__(self, folder: Path, *, skew: float = 0.0, **settings: Any) -> None:
        self.wall = SimulatedClock()
        self.monotonic = SimulatedClock(1000.0)
        self.engine_clock = SimulatedClock(EPOCH + skew)
        self.host = FakeHost(self.engine_clock)
        self.engine = FakeEngine(self.host)
        self.file = folder / "desired.yaml"
        options = {"port_range": (20000, 20099), "state_dir": folder / "state", **settings}
        self.settings = Settings(desired=self.file, **options)
        self.disks = Disks(self.host)
        self.notes = LogCapture(asyncio.get_running_loop().time)
        self._tasks: list[asyncio.Task[None]] = []
        # The tasks of the loop that a test makes fail.
        self.failing: set[str] = set()
        self.liveness = Liveness(asyncio.get_running_loop().time)
        self.manager: Manager
        self.queries: Queries
        self.operations: Operations
        self.store: Store

    @property
    def clocks(self) -> tuple[SimulatedClock, SimulatedClock, SimulatedClock]:
        return self.wall, self.monotonic, self.engine_clock

    def beside(self, folder: Path) -> "Stage":
        """Return a second daemon on the same engine, with another database and desired file."""
        other = Stage(folder, port_range=(20100, 20199), instance=self.settings.instance)
        other.wall, other.monotonic, other.engine_clock = self.clocks
        other.host, other.disks.host = self.host, self.host
        other.engine = FakeEngine(self.host, instance=self.settings.instance)
        return other

    async def __aexit__(self, *_: object) -> None:
        if self._tasks:
            await self.stop()

    # --- the daemon's life

    async def start(self, absent: Sequence[str] = tuple(_ABSENT)) -> Self:
        with self.liveness.collecting():
            await self._start(absent)
        return self

    async def _start(self, absent: Sequence[str]) -> None:
        self.store = await self._opened_store()
        self.store.supervised_by(lambda name, run: supervise(name, run, self.notes))
        await self.store.__aenter__()
        self.notes.ledger = self.store.append
        self.manager = build(
            self.settings,
            engine=self.engine,
            store=self.store,
            recorder=self.notes,
            monotonic=asyncio.get_running_loop().time,
            measure=self.disks,
        )
        self.queries = Queries(self.manager)
        self.operations = Operations(self.manager)
        await self.manager.read_manifest()
        roots = {name: run for name, run in self.manager.tasks.items() if name not in absent}
        self._tasks = [asyncio.create_task(run(), name=name) for name, run in roots.items()]

    async def _opened_store(self) -> Store:
        return await Store.open(
            self.settings.state_dir,
            on_trouble=lambda error: self.notes.log(events.StoreWriteFailed(error=str(error))),
            on_recovered=lambda: self.notes.log(events.StoreRecovered()),
            wall=self.wall,
            monotonic=self.monotonic,
        )

    async def stop(self) -> None:
        await self._end_tasks()
        await self.store.close()

    async def crash(self) -> None:
        """End like kill -9: unwritten state is lost, and no call is awaited."""
        await self._end_tasks()
        await self.store._writer.stop()
        await self.store._worker.run(self.store._database.close)
        self.store._worker.end()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def lose_database(self) -> None:
        """Stop the daemon and remove its database; the next start makes a new one."""
        await self.stop()
        for file in self.settings.state_dir.glob("*.db*"):
            file.unlink()

    async def _end_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await self.manager.close()
        failed = [e for e in ended if not isinstance(e, asyncio.CancelledError)]
        assert not failed, failed
        unexpected = [
            line
            for line in self.notes.logged(events.TaskFailed)
            if line["task"] in {*self.manager.tasks, "relist", "store-writer"} - self.failing
        ]
        assert not unexpected, unexpected

    # --- what its users do

    def write(self, sandboxes: Mapping[str, Any], **specs: Mapping[str, Any]) -> None:
        """Records as a state, or as overrides over the spec ``plain``."""
        records = {
            name: {"spec": "plain", **({"state": it} if isinstance(it, str) else it)}
            for name, it in sandboxes.items()
        }
        content = {"version": 1, "specs": {"plain": PLAIN, **specs}, "sandboxes": records}
        self.file.write_text(yaml.safe_dump(content), encoding="utf-8")

    async def edit(self, sandboxes: Mapping[str, Any], **specs: Mapping[str, Any]) -> SyncResult:
        self.write(sandboxes, **specs)
        return await self.manager.manifest_sync.read()

    async def converge(self, sandboxes: Mapping[str, Any], **specs: Mapping[str, Any]) -> None:
        await self.edit_or_start(sandboxes, **specs)
        await self.quiet()

    async def edit_or_start(self, sandboxes: Mapping[str, Any], **specs: Mapping[str, Any]) -> None:
        self.write(sandboxes, **specs)
        if self._tasks:
            await self.manager.manifest_sync.read()
        else:
            await self.start()

    def add_orphan(self, sandbox: str, phase: Phase = Phase.RUNNING) -> str:
        """A container that this daemon made for a sandbox without a record; returns its name."""
        name = f"{PREFIX}{sandbox}"
        self.host.add_container(name, self._marks(sandbox, name), phase=phase)
        return name

    def add_orphan_volume(self, sandbox: str, **more: str) -> str:
        """A workspace that this daemon made for a sandbox without a record; returns its name."""
        name = naming.volume_name(PREFIX, sandbox)
        self.host.add_volume(name, self._marks(sandbox, name, **more))
        return name

    def _marks(self, sandbox: str, name: str, **more: str) -> dict[str, str]:
        nonce = self.manager.ownership.intend(sandbox, name)
        return labels("default", sandbox, owner=self.store.owner, nonce=nonce, **more)

    # --- how time passes

    async def after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def days(self, count: float) -> None:
        """Days pass that the daemon observes; the loop runs for as long as it takes to notice."""
        self.store.clock._seconds += count * DAY
        await asyncio.sleep(130)

    async def quiet(self, within: float = 600.0) -> None:
        """Until nothing is to be done in the next moment."""
        async with asyncio.timeout(within):
            while not self.is_quiet():  # noqa: ASYNC110 - a turn of simulated time
                await asyncio.sleep(0.05)

    def is_quiet(self) -> bool:
        synced = self.manager.informer.synced.is_set()
        return synced and self.manager.queue.idle(0.1) and not self.manager.puller._pulls

    # --- what there is

    def seen(self, name: str) -> Container:
        return self.host.box(f"{PREFIX}{name}").seen

    def phases(self) -> dict[str, str]:
        """Every container's phase, by its name without the prefix."""
        boxes = (box.seen for box in self.host.boxes.values())
        return {seen.name.removeprefix(PREFIX): str(seen.phase) for seen in boxes}

    def row(self, name: str) -> dict[str, Any]:
        (row,) = self.queries.sandboxes(name, secrets=True)
        return row

    def statuses(self) -> dict[str, str]:
        return {row["name"]: row["status"] for row in self.queries.sandboxes()}
