import asyncio
from collections.abc import AsyncIterator, Callable
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
from tests.simulation.stage import Notebook, Stage


class Worker:
    """A task that fails after ``seconds`` with the next of ``errors``, and then runs on."""

    def __init__(self, *errors: BaseException, seconds: float = 0.0) -> None:
        self.errors = list(errors)
        self.seconds = seconds
        self.began: list[float] = []
        self.notes = Notebook(asyncio.get_running_loop().time)
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
    (line,) = worker.notes.said(events.TaskFailed, task="worker")
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

    notes = Notebook(asyncio.get_running_loop().time)
    task = asyncio.create_task(supervise("worker", run, notes))
    await asyncio.sleep(1)
    await end(task)
    assert len(notes.said(events.TaskFailed)) == 1


async def test_a_task_that_returns_has_ended():
    async def run() -> None:
        return

    notes = Notebook(asyncio.get_running_loop().time)
    await supervise("worker", run, notes)
    assert notes.lines == []


async def test_a_fatal_error_ends_the_task_and_is_not_logged():
    worker = Worker(LockedError("in use")).start(fatal=(LockedError,))
    with pytest.raises(LockedError):
        await worker.task
    assert worker.notes.lines == []


# --- each task of the loop


class Saboteur:
    """Raises an unexpected exception, once, in what a task calls."""

    def __init__(self, target: object, name: str) -> None:
        self._former = getattr(target, name)
        self._target, self._name = target, name
        self.struck = False
        setattr(target, name, self._strike)

    def _strike(self, *_: object, **__: object) -> Any:
        self.struck = True
        setattr(self._target, self._name, self._former)
        raise ZeroDivisionError(f"in {self._name}")


def part_of(name: str) -> Callable[[Manager], tuple[object, str]]:
    parts: dict[str, Callable[[Manager], tuple[object, str]]] = {
        "informer": lambda m: (m.informer, "_hear"),
        "relist": lambda m: (m.informer, "_relist"),
        "dispatcher": lambda m: (m.queue, "get"),
        "sweeper": lambda m: (m._identities, "sweep"),
        "disk": lambda m: (m.disk, "_judge"),
        "permits": lambda _: (EngineAccess, "review"),
        "store-writer": lambda m: (m.store._pending.ledger, "all"),
    }
    return parts[name]


@pytest.mark.parametrize(
    "name", ["informer", "relist", "dispatcher", "sweeper", "disk", "permits", "store-writer"]
)
async def test_each_task_of_the_loop_comes_back(stage: Stage, name: str):
    stage.failing.add(name)
    await stage.converge({"alice": "running"})
    saboteur = Saboteur(*part_of(name)(stage.manager))
    await stage.edit({"alice": "paused"})
    await stage.after(200)
    assert saboteur.struck
    (line,) = stage.notes.said(events.TaskFailed, task=name)
    assert line["error"].startswith(("ZeroDivisionError", "ExceptionGroup"))
    await stage.converge({"alice": "running", "bob": "running"})
    stage.host.kill("oh-agent-server-alice")
    await stage.after(90)
    assert stage.statuses() == {"alice": "RUNNING", "bob": "RUNNING"}
    again = Saboteur(*part_of(name)(stage.manager))
    await stage.edit({"alice": "paused", "bob": "running"})
    await stage.after(90)
    assert again.struck


async def test_nothing_is_known_while_the_informer_has_failed(stage: Stage):
    stage.failing.add("informer")
    await stage.converge({"alice": "running"})
    saboteur = Saboteur(stage.manager.informer, "_hear")
    stage.host.kill("oh-agent-server-alice")
    while not saboteur.struck:
        await stage.after(0.01)
    await stage.after(0.5)
    assert not stage.manager.informer.synced.is_set()
    assert not stage.manager.informer.complete
    await stage.after(30)
    assert stage.statuses() == {"alice": "RUNNING"}


async def test_the_watch_of_the_desired_file_comes_back(stage: Stage):
    stage.failing.add("manifest-watch")
    await stage.converge({"alice": "running"})
    saboteur = Saboteur(Watch, "changes")
    watching = asyncio.create_task(stage.manager.tasks()["manifest-watch"]())
    await stage.after(30)
    assert saboteur.struck
    assert len(stage.notes.said(events.TaskFailed, task="manifest-watch")) == 1
    stage.write({"alice": "paused"})
    await stage.after(2 * stage.settings.rescan_interval + 30)
    assert stage.statuses() == {"alice": "PAUSED"}
    await end(watching)


async def test_the_answer_to_another_daemon_comes_back(stage: Stage):
    await stage.converge({"alice": "running"})
    saboteur = Saboteur(stage.manager.owners, "_restore")
    marker = naming.marker_name("default", stage.store.owner)
    stage.host.remove_volume(marker)
    await stage.after(10)
    assert saboteur.struck
    assert len(stage.notes.said(events.TaskFailed, task="owner marker")) == 1
    assert marker in stage.host.markers


# --- each task of the daemon


class ServiceManager:
    """Counts what the service manager is sent."""

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

    def saboteur(self, name: str) -> Saboteur:
        targets: dict[str, tuple[object, str]] = {
            "control-socket": (server._Server, "startup"),
            "readiness": (self.heard, "ready"),
            "status": (self.heard, "status"),
            "watchdog": (self.heard, "watchdog"),
            "reload": (self.stage.manager.manifest_sync, "read"),
        }
        return Saboteur(*targets[name])

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
                return bool(self.stage.notes.said(events.ReloadDone, source="SIGHUP"))
            case "readiness":
                return bool(self.stage.notes.said(events.DaemonReady))
        return name in self.heard.heard


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    async with Stage(tmp_path, socket=tmp_path / "socket") as stage:
        await stage.converge({"alice": "running"})
        made = Served(stage)
        monkeypatch.setattr(stage.manager, "tasks", dict)
        yield made
        monkeypatch.undo()


@pytest.mark.parametrize("name", ["control-socket", "readiness", "status", "watchdog", "reload"])
async def test_each_task_of_the_daemon_comes_back(served: Served, name: str):
    saboteur = None if name == "reload" else served.saboteur(name)
    serving = asyncio.create_task(served.daemon._serve(served.stage.manager))
    await asyncio.sleep(1)
    if name == "reload":
        saboteur = served.saboteur(name)
        served.daemon._hangup.set()
        await asyncio.sleep(5)
    assert saboteur is not None
    assert saboteur.struck
    (line,) = served.stage.notes.said(events.TaskFailed, task=name)
    assert line["error"].startswith("ZeroDivisionError")
    assert await served.works(name)
    await end(serving)
