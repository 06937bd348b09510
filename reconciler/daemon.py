"""The daemon: start, signals, root tasks, shutdown.

Correctness needs no work at shutdown: the next start continues what was interrupted. The sandboxes
keep running.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import traceback
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, get_args

from reconciler import __version__
from reconciler.control.operations import Operations
from reconciler.control.queries import Queries
from reconciler.control.routes import create_app
from reconciler.control.server import bind, serve
from reconciler.core.errors import OUT_OF_FILES, ReconcilerError, StoreError, is_out_of_files
from reconciler.engine.docker.engine import DockerEngine
from reconciler.engine.docker.host import address
from reconciler.liveness import IDLE, Liveness
from reconciler.store.engine_lock import EngineLock
from reconciler.store.lock import StateLock
from reconciler.store.store import Store
from reconciler.telemetry import events, logging
from reconciler.telemetry.recorder import Recorder
from reconciler.telemetry.redact import describe_error, redactor
from reconciler.telemetry.supervision import log_failure, supervise
from reconciler.telemetry.systemd import Notifier, watchdog_interval
from reconciler.threads import BoundedCalls, DaemonThreads
from reconciler.wiring import Manager, build

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from reconciler.settings import Settings
    from reconciler.telemetry.supervision import Factory

# Seconds. An engine that starts beside the daemon at boot needs less; systemd waits longer.
_FIRST_SYNC: Final = 20.0
_STATUS_EVERY: Final = 5.0
_CHECK_EVERY: Final = 15.0
# Seconds; less than TimeoutStopSec in the systemd unit.
_SHUTDOWN_LIMIT: Final = 20.0
_FRAMES: Final = 12
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run(read_settings: Callable[[], Settings]) -> int:
    """Run the daemon until a signal and return the exit code; log an error as ``daemon.failed``.

    Args:
        read_settings: May raise a ReconcilerError, which is logged in the format that
            ``RECONCILER_LOG_FORMAT`` names.
    """
    named = os.environ.get("RECONCILER_LOG_FORMAT")
    formats: tuple[logging.Format, ...] = get_args(logging.Format)
    logging.configure(next((known for known in formats if known == named), "auto"))
    recorder = Recorder(time.monotonic)
    try:
        settings = read_settings()
        logging.configure(settings.log_format, settings.log_level)
        asyncio.run(Daemon(settings, recorder).run())
    except Exception as raised:  # noqa: BLE001 - a service manager shows the log, not a traceback
        error = _root_cause(raised)
        if isinstance(error, ReconcilerError):
            recorder.log(events.DaemonFailed(error=str(error)))
        else:
            trace = "".join(traceback.format_exception(error, limit=-_FRAMES))
            recorder.log(events.DaemonFailed(error=describe_error(error), traceback=trace))
        return 1
    return 0


class Daemon:
    """One daemon on one state directory."""

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self._notifier = Notifier.from_environment()
        self._calls = BoundedCalls()
        self._liveness = Liveness(time.monotonic)
        self._stopping = False
        self._hangup = asyncio.Event()

    async def run(self) -> None:
        """Take the locks, open the store, and run every task until a signal arrives.

        Raises:
            LockedError: another daemon uses the state directory, or this instance on this engine.
            StoreError: the state directory cannot be used.
            ControlSocketError: the control socket cannot be created.
        """
        self._recorder.log(
            events.DaemonStarted(
                version=__version__,
                instance=self._settings.instance,
                pid=os.getpid(),
            )
        )

        def report_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if is_out_of_files(context.get("exception")):
                self._recorder.complain(events.DaemonOutOfFiles(error=OUT_OF_FILES))
            else:
                loop.default_exception_handler(context)

        loop = asyncio.get_running_loop()
        # A DNS lookup or a read that hangs must not block the end of the process.
        loop.set_default_executor(DaemonThreads())
        loop.set_exception_handler(report_error)
        with self._liveness.collecting():
            work = asyncio.create_task(self._run_until_cancelled(), name="daemon")
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_stop_signal, number, work)
        try:
            await work
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        self._recorder.log(events.DaemonStopped())

    async def _run_until_cancelled(self) -> None:
        """Open everything in order, run the tasks, and close everything in reverse order."""
        settings, recorder = self._settings, self._recorder
        async with AsyncExitStack() as stack:
            try:
                # Never released: the lock ends with the process.
                lock = StateLock(settings.state_dir, settings.socket)
                await self._calls.run(settings.state_dir, lock.__enter__)
            except OSError as error:
                raise StoreError(f"{settings.state_dir}: {error.strerror}") from error
            try:
                host = await self._calls.run("engine", address, settings.docker_host)
            except OSError as error:
                trouble = f"the engine's address is unknown: {error.strerror}"
            else:
                trouble = stack.enter_context(EngineLock(host, settings.instance)).trouble
            if trouble:
                recorder.log(events.OwnerUnlocked(error=trouble))
            store = await Store.open(
                settings.state_dir,
                on_trouble=lambda error: recorder.log(events.StoreWriteFailed(error=str(error))),
                on_recovered=lambda: recorder.log(events.StoreRecovered()),
                ledger_rows=settings.ledger_rows,
            )
            store.supervised_by(self._supervise)
            recorder.ledger = store.append
            recorder.log(events.StoreOpened(path=str(settings.state_dir)))
            if store.unreadable:
                rows = [f"{row}: {why}" for row, why in store.unreadable.items()]
                recorder.log(events.StoreUnreadable(path=str(settings.state_dir), rows=rows))
            await stack.enter_async_context(store)
            engine = make_engine(settings)
            stack.push_async_callback(engine.close)
            manager = build(settings, engine=engine, store=store, recorder=recorder)
            stack.push_async_callback(manager.close)
            await self._run_tasks(manager)

    async def _run_tasks(self, manager: Manager) -> None:
        listener = await bind(self._settings.socket)
        try:
            await manager.read_manifest()
        except Exception as error:  # noqa: BLE001 - the task that watches the file reads it again
            log_failure("manifest-watch", error, self._recorder, 0.0)
        app, listeners = create_app(manager), [listener]

        async def control() -> None:
            # Only the first run has the socket that is bound already.
            await serve(app, self._settings.socket, listeners.pop() if listeners else None)

        async def reload_on_hangup() -> None:
            while True:
                await self._hangup.wait()
                self._hangup.clear()
                await Operations(manager).reload(source="SIGHUP")

        async def report_status() -> None:
            while self._notifier.enabled:
                self._notifier.status(redactor.clean(Queries(manager).summary()))
                await asyncio.sleep(_STATUS_EVERY)

        supervised: dict[str, Factory] = {
            "control-socket": control,
            "readiness": partial(self._report_ready, manager),
            "status": report_status,
            "watchdog": self._feed_watchdog,
            "reload": reload_on_hangup,
        }
        async with asyncio.TaskGroup() as group:
            for name, run_ in manager.tasks.items():
                group.create_task(run_(), name=name)
            for name, run_ in supervised.items():
                group.create_task(self._supervise(name, run_), name=name)

    async def _supervise(self, name: str, run_: Factory) -> None:
        await supervise(name, run_, self._recorder)

    # --- reports to the service manager -------------------------------------------------------

    async def _report_ready(self, manager: Manager) -> None:
        """Report readiness after the first sync, or without it if the engine is unreachable."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(_FIRST_SYNC):
                await manager.informer.synced.wait()
        except TimeoutError:
            self._recorder.log(events.DaemonWaiting())
        self._recorder.log(
            events.DaemonReady(
                seconds=round(time.monotonic() - began, 3),
                records=len(manager.store.records),
            )
        )
        self._notifier.ready(redactor.clean(Queries(manager).summary()))

    async def _feed_watchdog(self) -> None:
        """Feed systemd's watchdog while no task hangs; otherwise log which tasks hang."""
        interval = watchdog_interval()
        pause = min(interval or _CHECK_EVERY, _CHECK_EVERY)
        checked = time.monotonic()
        while True:
            hung = self._liveness.hung()
            # After SIGSTOP or a suspended host, every task first needs time to make progress.
            was_suspended = time.monotonic() - checked > pause + IDLE
            if hung and not was_suspended:
                self._recorder.complain(events.DaemonStalled(tasks=hung))
            else:
                self._notifier.watchdog()
                self._recorder.resolve(events.DaemonStalled)
            checked = time.monotonic()
            await asyncio.sleep(pause)

    # --- signals ------------------------------------------------------------------------------

    def _on_stop_signal(self, number: signal.Signals, work: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()

        def exit_now(again: int, _frame: FrameType | None) -> None:
            os._exit(128 + again)

        def exit_after_limit() -> None:
            error = f"shutdown did not finish within {_SHUTDOWN_LIMIT:g} s; exiting without it"
            self._recorder.log(events.DaemonFailed(error=error))
            os._exit(1)

        for each in _STOP_SIGNALS:
            loop.remove_signal_handler(each)
            # Outside the event loop, so that a second signal works even if the loop is blocked.
            signal.signal(each, exit_now)
        self._recorder.log(events.DaemonStopping(signal=signal.Signals(number).name))
        self._notifier.stopping()
        self._stopping = True
        loop.call_later(_SHUTDOWN_LIMIT, exit_after_limit)
        work.cancel()


def make_engine(settings: Settings) -> DockerEngine:
    """Return a client for the engine that the settings name; it connects at the first call."""
    return DockerEngine(
        instance=settings.instance,
        docker_host=settings.docker_host,
        call_timeout=settings.engine_timeout,
        read_timeout=settings.read_timeout,
        pull_timeout=settings.pull_timeout,
    )


def _root_cause(error: BaseException) -> BaseException:
    """Return the first error of a group; a ReconcilerError, which a user can fix, comes first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = [_root_cause(inner) for inner in error.exceptions]
    return next((it for it in found if isinstance(it, ReconcilerError)), found[0])
