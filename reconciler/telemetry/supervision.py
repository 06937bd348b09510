"""Restart a long-lived task whenever it fails."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any, Final, Protocol

from reconciler.telemetry import events
from reconciler.telemetry.redact import describe_error

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from reconciler.telemetry.events import RepeatedEvent

    Factory = Callable[[], Coroutine[Any, Any, None]]

BACKOFF_FIRST: Final = 1.0
BACKOFF_LONGEST: Final = 60.0
# Seconds: a run that took this long resets the backoff.
STABLE: Final = 120.0
_FRAMES: Final = 12


class Log(Protocol):
    """The part of the recorder that supervision needs."""

    def complain(self, event: RepeatedEvent, *, about: str = "") -> object:
        """Log a warning that may repeat."""


async def supervise(
    name: str,
    factory: Factory,
    recorder: Log,
    *,
    fatal: tuple[type[Exception], ...] = (),
) -> None:
    """Run ``factory()`` until it returns, and run it again after each exception.

    An exception is logged as ``task.failed`` with the task's name. The pause before the next run
    doubles from ``BACKOFF_FIRST`` to ``BACKOFF_LONGEST`` seconds, and is reset after a run of
    ``STABLE`` seconds. Cancelling this task ends it; a ``CancelledError`` with another origin is a
    failure like any other.

    Args:
        name: The task's name in the log.
        factory: Returns the coroutine of one run.
        recorder: Logs the failures.
        fatal: Exceptions that end the daemon: they are raised, and not logged.
    """
    clock = asyncio.get_running_loop().time
    pause = BACKOFF_FIRST
    while True:
        began = clock()
        try:
            return await factory()
        except fatal:
            raise
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            failure: BaseException = error
        except Exception as error:  # noqa: BLE001 - a defect in one task must not end the others
            failure = error
        if clock() - began >= STABLE:
            pause = BACKOFF_FIRST
        log_failure(name, failure, recorder, pause)
        if is_cancelled():
            # It failed while it was being cancelled, so it must not run again.
            raise asyncio.CancelledError
        del failure
        await asyncio.sleep(pause)
        pause = min(pause * 2, BACKOFF_LONGEST)


def is_cancelled() -> bool:
    """Return whether the current task itself is being cancelled, not only what it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def log_failure(name: str, error: BaseException, recorder: Log, retry_in: float | None) -> None:
    """Log that a task failed. It runs again in ``retry_in`` seconds; None: on demand."""
    text = describe_error(error)
    recorder.complain(
        events.TaskFailed(
            task=name,
            error=text,
            retry_in=retry_in,
            traceback="".join(traceback.format_exception(error, limit=-_FRAMES)),
        ),
        about=name,
    )
