"""The daemon: its root tasks, its signals, the order of its start and end.

There is no work at the end that correctness needs: whatever is cut off is taken up again by the
next start. The sandboxes go on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from reconciler import __version__
from reconciler.api.app import create_app
from reconciler.api.server import serve
from reconciler.core.errors import OUT_OF_FILES, ReconcilerError, is_out_of_files
from reconciler.engine.docker import DockerEngine
from reconciler.loop.manager import Manager
from reconciler.loop.reporter import Reporter
from reconciler.service import logging
from reconciler.service.events import Event
from reconciler.service.notify import Notifier, watchdog_interval
from reconciler.service.redact import redactor
from reconciler.service.supervision import supervise
from reconciler.store.lock import StateLock
from reconciler.store.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from reconciler.core.errors import StoreError
    from reconciler.service.supervision import Factory
    from reconciler.settings import Settings

# Long enough for an engine that starts beside us at boot, short enough for systemd's patience.
_FIRST_SYNC: Final = 20.0
_STATUS_EVERY: Final = 5.0


def run(settings: Settings) -> int:
    """Run until a signal; the exit code.

    Raises:
        ReconcilerError: it cannot start, or cannot go on; the message says what to do.
    """
    logging.configure(settings.log_format, settings.log_level)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    reporter = Reporter(time.monotonic)
    reporter.log(
        Event.DAEMON_STARTED,
        version=__version__,
        instance=settings.instance,
        pid=os.getpid(),
    )
    try:
        await Daemon(settings, reporter).run()
    except* ReconcilerError as errors:
        error = _first(errors)
        reporter.log(Event.DAEMON_FAILED, error=str(error))
        raise error from errors
    return 0


class Daemon:
    """One daemon on one state directory."""

    def __init__(self, settings: Settings, reporter: Reporter) -> None:
        self._settings = settings
        self._reporter = reporter
        self._notifier = Notifier.from_environment()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """From the lock to the last goodbye.

        Raises:
            LockedError: another daemon works on the state directory.
            StoreError: the state directory cannot be used.
        """
        self._heed_signals()
        asyncio.get_running_loop().set_exception_handler(self._loop_trouble)
        settings = self._settings
        async with AsyncExitStack() as stack:
            stack.enter_context(StateLock(settings.state_dir, settings.socket))
            store = await stack.enter_async_context(await self._open_store())
            engine = make_engine(settings)
            stack.push_async_callback(engine.close)
            manager = Manager(settings, engine=engine, store=store, reporter=self._reporter)
            stack.push_async_callback(manager.close)
            await self._serve_until_stopped(manager)
        self._reporter.log(Event.DAEMON_STOPPED)

    async def _open_store(self) -> Store:
        store = await Store.open(
            self._settings.state_dir,
            on_trouble=self._store_trouble,
            on_recovered=self._store_recovered,
            ledger_rows=self._settings.ledger_rows,
        )
        self._reporter.ledger = store.append
        self._reporter.log(Event.STORE_OPENED, path=str(self._settings.state_dir))
        return store

    async def _serve_until_stopped(self, manager: Manager) -> None:
        await manager.read_manifest()
        roots: dict[str, Factory] = {
            **manager.tasks(),
            "control-socket": lambda: serve(create_app(manager), self._settings.socket),
            **self._supervised(
                {
                    "readiness": lambda: self._become_ready(manager),
                    "status": lambda: self._tell_status(manager),
                    "watchdog": lambda: self._feed_watchdog(manager),
                }
            ),
        }
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(root(), name=name) for name, root in roots.items()]
            await self._stop.wait()
            for task in tasks:
                task.cancel()

    def _supervised(self, tasks: Mapping[str, Factory]) -> dict[str, Factory]:
        return {name: partial(supervise, name, run, self._reporter) for name, run in tasks.items()}

    # --- what the service manager is told -----------------------------------------------------

    async def _become_ready(self, manager: Manager) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(_FIRST_SYNC):
                await manager.informer.synced.wait()
        except TimeoutError:
            self._reporter.log(Event.DAEMON_WAITING)
        self._reporter.log(
            Event.DAEMON_READY,
            seconds=round(time.monotonic() - began, 3),
            records=len(manager.store.records),
        )
        self._notifier.ready(redactor.clean(_state_line(manager)))

    async def _tell_status(self, manager: Manager) -> None:
        while self._notifier.enabled:
            self._notifier.status(redactor.clean(_state_line(manager)))
            await asyncio.sleep(_STATUS_EVERY)

    async def _feed_watchdog(self, manager: Manager) -> None:
        interval = watchdog_interval()
        if interval is None:
            return
        while True:
            if manager.dispatcher.makes_progress:
                self._notifier.watchdog()
            else:
                self._reporter.complain(Event.DAEMON_STALLED)
            await asyncio.sleep(interval)

    # --- signals and troubles -----------------------------------------------------------------

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._be_stopped, number)

    def _be_stopped(self, number: signal.Signals) -> None:
        self._reporter.log(Event.DAEMON_STOPPING, signal=signal.Signals(number).name)
        self._notifier.stopping()
        self._stop.set()

    def _loop_trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if is_out_of_files(context.get("exception")):
            self._reporter.complain(Event.DAEMON_OUT_OF_FILES, error=OUT_OF_FILES)
        else:
            loop.default_exception_handler(context)

    def _store_trouble(self, error: StoreError) -> None:
        self._reporter.log(Event.STORE_WRITE_FAILED, error=str(error))

    def _store_recovered(self) -> None:
        self._reporter.log(Event.STORE_RECOVERED)


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
    reporter = Reporter(time.monotonic)
    # A rehearsal is no part of anybody's story.
    reporter.ledger = None if store.readonly else store.append
    manager = Manager(settings, engine=engine, store=store, reporter=reporter)
    try:
        yield manager
    finally:
        await manager.close()
        await engine.close()


def _state_line(manager: Manager) -> str:
    if not manager.informer.synced.is_set():
        return f"waiting for the engine: {manager.informer.error}"
    if manager.lanes.wedged:
        return manager.lanes.wedged
    state = manager.answers.convergence()
    settled = state["total"] - len(state["pending"])
    line = f"{settled} of {state['total']} sandboxes are as desired"
    return "; ".join(filter(None, (line, manager.disk.hold, manager.guard.summary)))


def _first(errors: BaseExceptionGroup[ReconcilerError]) -> ReconcilerError:
    found = errors.exceptions[0]
    return found if isinstance(found, ReconcilerError) else _first(found)
