import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reconciler.control import server
from reconciler.core import naming
from reconciler.core.errors import LockedError
from reconciler.daemon import Daemon
from reconciler.manifest.watch import Watch
from reconciler.observe.engine_access import EngineAccess
from reconciler.telemetry import events
from reconciler.telemetry.supervision import BACKOFF_LONGEST, STABLE, supervise
from reconciler.wiring import Manager
from tests.simulation.stage import LogCapture, Stage


class Worker:
    """A task that raises each of ``errors`` after ``seconds``, and then runs on."""

    def __init__(self, *errors: BaseException, seconds: float = 0.0) -> None:
        self.errors = list(errors)
        self.seconds = seconds
        self.began: list[float] = []
        self.notes = LogCapture(asyncio.get_running_loop().time)
        self.task: asyncio.Task[None]

    async def run(self) -> None:
        self.began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        if self.errors:
            raise self.errors.pop(0)
        await asyncio.Event().wait()

    def start(self, **options: Any) -> "Worker":
        self.task = asyncio.create_task(supervise("worker", self.run, self.notes, **options))
        return self

    @property
    def pauses(self) -> list[float]:
        ends = [began + self.seconds for began in self.began]
        return [after - end for end, after in zip(ends, self.began[1:], strict=False)]


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("division"),
        RuntimeError("can't start new thread"),
        ExceptionGroup("several", [KeyError("a"), OSError("b")]),
        asyncio.CancelledError("not of this task"),
        TimeoutError(),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_failed_task_is_logged_and_runs_again(error: BaseException):
    worker = Worker(error).start()
    await asyncio.sleep(30)
    assert len(worker.began) == 2
    (line,) = worker.notes.logged(events.TaskFailed, task="worker")
    assert type(error).__name__ in line["error"]
    assert line["retry_in"] == worker.pauses[0]
    assert "test_supervision.py" in line["traceback"]
    await end(worker.task)


async def test_the_pause_doubles_up_to_a_bound():
    worker = Worker(*(ValueError(str(n)) for n in range(10))).start()
    await asyncio.sleep(600)
    assert worker.pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert worker.pauses[-2:] == [BACKOFF_LONGEST, BACKOFF_LONGEST]
    await end(worker.task)


async def test_a_stable_run_resets_the_pause():
    worker = Worker(*(ValueError(str(n)) for n in range(4)), seconds=STABLE).start()
    await asyncio.sleep(6 * STABLE)
    assert worker.pauses == pytest.approx([1.0] * 4)
    await end(worker.task)


async def test_a_task_that_fails_while_it_is_cancelled_ends():
    async def run() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("while it was cancelled")

    notes = LogCapture(asyncio.get_running_loop().time)
    task = asyncio.create_task(supervise("worker", run, notes))
    await asyncio.sleep(1)
    await end(task)
    assert len(notes.logged(events.TaskFailed)) == 1


async def test_a_task_that_returns_has_ended():
    async def run() -> None:
        return

    notes = LogCapture(asyncio.get_running_loop().time)
    await supervise("worker", run, notes)
    assert notes.lines == []


async def test_a_fatal_error_ends_the_task_and_is_not_logged():
    worker = Worker(LockedError("in use")).start(fatal=(LockedError,))
    with pytest.raises(LockedError):
        await worker.task
    assert worker.notes.lines == []


# --- each task of the loop


class FailOnce:
    """Raises an unexpected exception, once, in a method that a task calls."""

    def __init__(self, target: object, name: str) -> None:
        self._former = getattr(target, name)
        self._target, self._name = target, name
        self.has_failed = False
        setattr(target, name, self._fail)

    def _fail(self, *_: object, **__: object) -> Any:
        self.has_failed = True
        setattr(self._target, self._name, self._former)
        raise ZeroDivisionError(f"in {self._name}")


def part_of(name: str) -> Callable[[Manager], tuple[object, str]]:
    parts: dict[str, Callable[[Manager], tuple[object, str]]] = {
        "informer": lambda m: (m.informer, "handle"),
        "relist": lambda m: (m.informer, "_list"),
        "workers": lambda m: (m.queue, "get"),
        "sweeper": lambda m: (m.identities, "sweep"),
        "disk": lambda m: (m.disk, "_judge"),
        "engine-access": lambda _: (EngineAccess, "review"),
        "store-writer": lambda m: (m.store._pending.ledger, "all"),
    }
    return parts[name]


@pytest.mark.parametrize(
    "name", ["informer", "relist", "workers", "sweeper", "disk", "engine-access", "store-writer"]
)
async def test_each_failed_task_is_restarted(stage: Stage, name: str):
    stage.failing.add(name)
    await stage.converge({"alice": "running"})
    failing_once = FailOnce(*part_of(name)(stage.manager))
    await stage.edit({"alice": "paused"})
    await stage.after(200)
    assert failing_once.has_failed
    (line,) = stage.notes.logged(events.TaskFailed, task=name)
    assert line["error"].startswith(("ZeroDivisionError", "ExceptionGroup"))
    await stage.converge({"alice": "running", "bob": "running"})
    stage.host.kill("oh-agent-server-alice")
    await stage.after(90)
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}
    again = FailOnce(*part_of(name)(stage.manager))
    await stage.edit({"alice": "paused", "bob": "running"})
    await stage.after(90)
    assert again.has_failed


async def test_failed_informer_is_not_synced(stage: Stage):
    stage.failing.add("informer")
    await stage.converge({"alice": "running"})
    failing_once = FailOnce(stage.manager.informer, "handle")
    stage.host.kill("oh-agent-server-alice")
    while not failing_once.has_failed:
        await stage.after(0.01)
    await stage.after(0.5)
    assert not stage.manager.informer.synced.is_set()
    assert not stage.manager.informer.complete
    await stage.after(30)
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_failed_manifest_watch_is_restarted(stage: Stage):
    stage.failing.add("manifest-watch")
    await stage.converge({"alice": "running"})
    failing_once = FailOnce(Watch, "changes")
    watching = asyncio.create_task(stage.manager.tasks["manifest-watch"]())
    await stage.after(30)
    assert failing_once.has_failed
    assert len(stage.notes.logged(events.TaskFailed, task="manifest-watch")) == 1
    stage.write({"alice": "paused"})
    await stage.after(2 * stage.settings.rescan_interval + 30)
    assert stage.statuses() == {"alice": "PAUSED"}
    await end(watching)


async def test_failed_marker_restore_is_restarted(stage: Stage):
    await stage.converge({"alice": "running"})
    failing_once = FailOnce(stage.manager.owners, "_restore")
    marker = naming.marker_name("default", stage.store.owner)
    stage.host.remove_volume(marker)
    await stage.after(10)
    assert failing_once.has_failed
    assert len(stage.notes.logged(events.TaskFailed, task="owner marker")) == 1
    assert marker in stage.host.markers


# --- each task of the daemon


class ServiceManager:
    """Counts the messages to the service manager."""

    enabled = True

    def __init__(self) -> None:
        self.heard: list[str] = []

    def ready(self, _status: str = "") -> bool:
        self.heard.append("ready")
        return True

    def status(self, _text: str) -> bool:
        self.heard.append("status")
        return True

    def watchdog(self) -> bool:
        self.heard.append("watchdog")
        return True


class Served:
    """The daemon's tasks, beside those of the manager that a stage runs."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.daemon = Daemon(stage.settings, stage.notes)
        self.heard = ServiceManager()
        self.daemon._notifier = self.heard  # type: ignore[assignment]

    def failing_once(self, name: str) -> FailOnce:
        targets: dict[str, tuple[object, str]] = {
            "control-socket": (server._Server, "startup"),
            "readiness": (self.heard, "ready"),
            "status": (self.heard, "status"),
            "watchdog": (self.heard, "watchdog"),
            "reload": (self.stage.manager.manifest_sync, "read"),
        }
        return FailOnce(*targets[name])

    async def works(self, name: str) -> bool:
        self.heard.heard.clear()
        if name == "reload":
            self.daemon._hangup.set()
        await asyncio.sleep(60)
        match name:
            case "control-socket":
                _, writer = await asyncio.open_unix_connection(self.stage.settings.socket)
                writer.close()
                return True
            case "reload":
                return bool(self.stage.notes.logged(events.ReloadDone, source="SIGHUP"))
            case "readiness":
                return bool(self.stage.notes.logged(events.DaemonReady))
        return name in self.heard.heard


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with Stage(tmp_path, socket=tmp_path / "socket") as stage:
        await stage.converge({"alice": "running"})
        yield Served(stage)


@pytest.mark.parametrize("name", ["control-socket", "readiness", "status", "watchdog", "reload"])
async def test_each_failed_daemon_task_is_restarted(served: Served, name: str):
    failing_once = None if name == "reload" else served.failing_once(name)
    # The stage runs the tasks of the manager.
    manager = replace(served.stage.manager, tasks={})
    serving = asyncio.create_task(served.daemon._run_tasks(manager))
    await asyncio.sleep(1)
    if name == "reload":
        failing_once = served.failing_once(name)
        served.daemon._hangup.set()
        await asyncio.sleep(5)
    assert failing_once is not None
    assert failing_once.has_failed
    (line,) = served.stage.notes.logged(events.TaskFailed, task=name)
    assert line["error"].startswith("ZeroDivisionError")
    assert await served.works(name)
    await end(serving)
