"""The daemon: its root tasks, its signals, the order of its start and end.

No work at the end is needed for correctness: the next start continues what was cut off. The
sandboxes keep running.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import traceback
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, get_args

from reconciler import __version__
from reconciler.control.queries import Queries
from reconciler.control.requests import Requests
from reconciler.control.routes import create_app
from reconciler.control.server import bind, serve
from reconciler.core.errors import OUT_OF_FILES, ReconcilerError, StoreError, is_out_of_files
from reconciler.engine.docker.engine import DockerEngine
from reconciler.engine.docker.host import address
from reconciler.progress import IDLE, Progress
from reconciler.store.engine_lock import EngineLock
from reconciler.store.lock import StateLock
from reconciler.store.store import Store
from reconciler.telemetry import events, logging
from reconciler.telemetry.recorder import Recorder
from reconciler.telemetry.redact import describe_error, redactor
from reconciler.telemetry.supervision import log_failure, supervise
from reconciler.telemetry.systemd import Notifier, watchdog_interval
from reconciler.threads import BoundedCalls, DaemonThreads
from reconciler.wiring import Manager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import FrameType

    from reconciler.settings import Settings
    from reconciler.telemetry.supervision import Factory

# Long enough for an engine that starts beside us at boot, short enough for systemd's patience.
_FIRST_SYNC: Final = 20.0
_STATUS_EVERY: Final = 5.0
_CHECK_EVERY: Final = 15.0
# Seconds; less than the service manager's TimeoutStopSec.
_LONGEST_END: Final = 20.0
_FRAMES: Final = 12
_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def run(read_settings: Callable[[], Settings]) -> int:
    """Run until a signal; the exit code. What ends it otherwise is logged as ``daemon.failed``.

    Args:
        read_settings: May raise a ReconcilerError, which is logged as the environment says.
    """
    logging.configure(_format_of(os.environ))
    recorder = Recorder(time.monotonic)
    try:
        settings = read_settings()
        logging.configure(settings.log_format, settings.log_level)
        asyncio.run(_run(settings, recorder))
    except Exception as error:  # noqa: BLE001 - a service manager keeps the log, not the traceback
        _log_end(recorder, _first(error))
        return 1
    return 0


def _format_of(environ: Mapping[str, str]) -> logging.Format:
    """The log's format until the settings are known."""
    named = environ.get("RECONCILER_LOG_FORMAT", "auto")
    return next((known for known in get_args(logging.Format) if known == named), "auto")


def _log_end(recorder: Recorder, error: BaseException) -> None:
    if isinstance(error, ReconcilerError):
        recorder.log(events.DaemonFailed(error=str(error)))
        return
    trace = "".join(traceback.format_exception(error, limit=-_FRAMES))
    recorder.log(events.DaemonFailed(error=describe_error(error), traceback=trace))


async def _run(settings: Settings, recorder: Recorder) -> None:
    recorder.log(
        events.DaemonStarted(version=__version__, instance=settings.instance, pid=os.getpid())
    )
    # A name that does not resolve, or a file that hangs, must not keep the process from ending.
    asyncio.get_running_loop().set_default_executor(DaemonThreads())
    await Daemon(settings, recorder).run()


class Daemon:
    """One daemon on one state directory."""

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self._notifier = Notifier.from_environment()
        self._calls = BoundedCalls()
        self._progress = Progress(time.monotonic)
        self._stopping = False
        self._hangup = asyncio.Event()

    async def run(self) -> None:
        """Take the lock, open the store, and run every task until a signal comes.

        Raises:
            LockedError: another daemon works on the state directory, or with this instance on
                this engine.
            StoreError: the state directory cannot be used.
            ControlSocketError: the control socket cannot be made.
        """
        asyncio.get_running_loop().set_exception_handler(self._loop_trouble)
        with self._progress.collecting():
            work = asyncio.create_task(self._work(), name="daemon")
        self._heed_signals(work)
        try:
            await work
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        self._recorder.log(events.DaemonStopped())

    async def _work(self) -> None:
        settings = self._settings
        async with AsyncExitStack() as stack:
            lock = StateLock(settings.state_dir, settings.socket)
            try:
                # Not left before the process ends, which gives it back.
                await self._calls.run(settings.state_dir, lock.__enter__)
            except OSError as error:
                raise StoreError(f"{settings.state_dir}: {error.strerror}") from error
            await self._lock_engine(stack)
            store = await stack.enter_async_context(await self._open_store())
            engine = make_engine(settings)
            stack.push_async_callback(engine.close)
            manager = Manager(settings, engine=engine, store=store, recorder=self._recorder)
            stack.push_async_callback(manager.close)
            await self._serve(manager)

    async def _lock_engine(self, stack: AsyncExitStack) -> None:
        try:
            engine = await self._calls.run("engine", address, self._settings.docker_host)
        except OSError as error:
            trouble = f"the engine's address is unknown: {error.strerror}"
        else:
            trouble = stack.enter_context(EngineLock(engine, self._settings.instance)).trouble
        if trouble:
            self._recorder.log(events.OwnerUnlocked(error=trouble))

    async def _open_store(self) -> Store:
        store = await Store.open(
            self._settings.state_dir,
            on_trouble=self._store_trouble,
            on_recovered=self._store_recovered,
            ledger_rows=self._settings.ledger_rows,
        )
        store.supervised_by(self._supervise)
        self._recorder.ledger = store.append
        path = str(self._settings.state_dir)
        self._recorder.log(events.StoreOpened(path=path))
        if store.unreadable:
            rows = [f"{row}: {why}" for row, why in store.unreadable.items()]
            self._recorder.log(events.StoreUnreadable(path=path, rows=rows))
        return store

    async def _serve(self, manager: Manager) -> None:
        listener = await bind(self._settings.socket)
        await self._read_first(manager)
        app, listeners = create_app(manager), [listener]

        async def control() -> None:
            await serve(app, self._settings.socket, listeners.pop() if listeners else None)

        own: dict[str, Factory] = {
            "control-socket": control,
            "readiness": lambda: self._become_ready(manager),
            "status": lambda: self._tell_status(manager),
            "watchdog": self._feed_watchdog,
            "reload": lambda: self._reload_on_hangup(manager),
        }
        async with asyncio.TaskGroup() as group:
            for name, run_ in manager.tasks().items():
                group.create_task(run_(), name=name)
            for name, run_ in own.items():
                group.create_task(self._supervise(name, run_), name=name)

    async def _read_first(self, manager: Manager) -> None:
        try:
            await manager.read_manifest()
        except Exception as error:  # noqa: BLE001 - the task that watches the file reads it again
            log_failure("manifest-watch", error, self._recorder, 0.0)

    async def _supervise(self, name: str, run_: Factory) -> None:
        await supervise(name, run_, self._recorder)

    # --- what the service manager is told -----------------------------------------------------

    async def _become_ready(self, manager: Manager) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(_FIRST_SYNC):
                await manager.informer.synced.wait()
        except TimeoutError:
            self._recorder.log(events.DaemonWaiting())
        self._recorder.log(
            events.DaemonReady(
                seconds=round(time.monotonic() - began, 3), records=len(manager.store.records)
            )
        )
        self._notifier.ready(redactor.clean(Queries(manager).summary()))

    async def _tell_status(self, manager: Manager) -> None:
        while self._notifier.enabled:
            self._notifier.status(redactor.clean(Queries(manager).summary()))
            await asyncio.sleep(_STATUS_EVERY)

    async def _feed_watchdog(self) -> None:
        interval = watchdog_interval()
        pause = min(interval or _CHECK_EVERY, _CHECK_EVERY)
        checked = time.monotonic()
        while True:
            hung = self._progress.hung()
            # After a stop of the whole process, each activity needs a moment to move on.
            stopped = time.monotonic() - checked > pause + IDLE
            if hung and not stopped:
                self._recorder.complain(events.DaemonStalled(tasks=hung))
            else:
                self._notifier.watchdog()
                self._recorder.resolve(events.DaemonStalled)
            checked = time.monotonic()
            await asyncio.sleep(pause)

    # --- signals and troubles -----------------------------------------------------------------

    async def _reload_on_hangup(self, manager: Manager) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            await Requests(manager).reload(source="SIGHUP")

    def _heed_signals(self, work: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        for number in _ENDING:
            loop.add_signal_handler(number, self._be_stopped, number, work)

    def _be_stopped(self, number: signal.Signals, work: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        for each in _ENDING:
            loop.remove_signal_handler(each)
            # Not by the loop: a second signal ends the process also where the loop is blocked.
            signal.signal(each, _end_at_once)
        self._recorder.log(events.DaemonStopping(signal=signal.Signals(number).name))
        self._notifier.stopping()
        self._stopping = True
        loop.call_later(_LONGEST_END, self._give_up)
        work.cancel()

    def _give_up(self) -> None:
        error = f"shutdown did not finish within {_LONGEST_END:g} s; the process ends as it is"
        self._recorder.log(events.DaemonFailed(error=error))
        os._exit(1)

    def _loop_trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if is_out_of_files(context.get("exception")):
            self._recorder.complain(events.DaemonOutOfFiles(error=OUT_OF_FILES))
        else:
            loop.default_exception_handler(context)

    def _store_trouble(self, error: StoreError) -> None:
        self._recorder.log(events.StoreWriteFailed(error=str(error)))

    def _store_recovered(self) -> None:
        self._recorder.log(events.StoreRecovered())


def make_engine(settings: Settings) -> DockerEngine:
    """The engine that the settings name; it is not asked anything yet."""
    return DockerEngine(
        instance=settings.instance,
        docker_host=settings.docker_host,
        call_timeout=settings.engine_timeout,
        read_timeout=settings.read_timeout,
        pull_timeout=settings.pull_timeout,
    )


@asynccontextmanager
async def quiet_manager(settings: Settings, store: Store) -> AsyncIterator[Manager]:
    """A manager for a command: what it does is the answer, so the log says only what is wrong."""
    logging.configure("auto", "error")
    engine = make_engine(settings)
    recorder = Recorder(time.monotonic)
    # A rehearsal is no part of anybody's story.
    recorder.ledger = None if store.readonly else store.append
    manager = Manager(settings, engine=engine, store=store, recorder=recorder)
    try:
        yield manager
    finally:
        await manager.close()
        await engine.close()


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _first(error: BaseException) -> BaseException:
    """The first error of a group; one that is no defect of this program goes first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = [_first(inner) for inner in error.exceptions]
    return next((it for it in found if isinstance(it, ReconcilerError)), found[0])
