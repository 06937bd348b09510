"""Set up logging: lines as JSON, as text for people, or as fields of the journal.

The ``Recorder`` logs typed events with ``structlog.get_logger()``. What a line carries beyond the
fields of its event (``reconcile_id``) is bound with ``structlog.contextvars``.
"""

import logging
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from reconciler.telemetry import events
from reconciler.telemetry.journald import Journal
from reconciler.telemetry.output import (
    JournalOutput,
    LineWriter,
    Output,
    TextOutput,
    console_renderer,
    json_line,
)
from reconciler.telemetry.redact import Redactor, describe_error, redactor, sanitizer

Format = Literal["auto", "json", "console", "journal"]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_TRACEBACK_FRAMES = 12


def configure(
    log_format: Format = "auto",
    level: str = "info",
    stream: TextIO | None = None,
    *,
    redact: Redactor = redactor,
) -> None:
    """Route every log line of this process, including those of libraries, to one output.

    A second call changes the output of existing loggers too.

    Args:
        log_format: ``auto`` is the journal if the stream leads there, coloured text on a terminal,
            and JSON elsewhere.
        level: The lowest level that is written: debug, info, warning, error or critical.
        stream: The output of text; None: standard error.
        redact: The secrets that no line may show.

    Raises:
        ValueError: The level is none of these.
    """
    if level not in _LEVELS:
        raise ValueError(f"log level {level!r}: must be one of {', '.join(_LEVELS)}")
    output = _output(log_format, stream or sys.stderr)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _error_processor(with_traceback=_LEVELS[level] <= logging.DEBUG),
            sanitizer(redact),
            # structlog would spread a dict into keyword arguments; the sink takes it whole.
            lambda _logger, _method, event: ((event,), {}),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: _Sink(output),
        cache_logger_on_first_use=False,  # a module's logger must follow a later configure()
    )
    root = logging.getLogger()
    # Exact types: subclasses belong to test runners and debuggers, which keep them.
    replaced = (LibraryHandler, logging.StreamHandler)
    root.handlers = [handler for handler in root.handlers if type(handler) not in replaced]
    root.addHandler(LibraryHandler())
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


def choose_format(stream: TextIO, environ: Mapping[str, str] = os.environ) -> Format:
    """Return the format that ``auto`` means for a stream."""
    if is_journal(stream, environ.get("JOURNAL_STREAM", "")):
        return "journal"
    return "console" if stream.isatty() else "json"


def is_journal(stream: TextIO, journal_stream: str) -> bool:
    """Return whether a stream leads to the journal.

    Args:
        stream: The stream, usually standard error.
        journal_stream: ``$JOURNAL_STREAM``, ``DEVICE:INODE``. Processes whose output was redirected
            inherit it, so it has to match the stream.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


class LibraryHandler(logging.Handler):
    """Logs the records of the standard library's loggers as ``library.log``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record with its level."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a wrong format string in a library is not our failure
            message = str(record.msg)
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        event = events.LibraryLog(logger=record.name, message=message)
        log = structlog.get_logger()
        log.log(level, event.event_name, **event.fields(), exc_info=record.exc_info)


def _output(log_format: Format, stream: TextIO) -> Output:
    chosen = choose_format(stream) if log_format == "auto" else log_format
    writer = LineWriter(stream)
    if chosen == "console":
        colours = stream.isatty() and not os.environ.get("NO_COLOR")
        return TextOutput(writer, console_renderer(colours=colours))
    text = TextOutput(writer, json_line)
    return JournalOutput(Journal(), text) if chosen == "journal" else text


class _Sink:
    """The innermost logger: every level's method takes the finished line."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def msg(self, event: EventDict) -> None:
        self._output.emit(event)

    debug = info = warning = error = critical = log = msg


def _error_processor(*, with_traceback: bool) -> structlog.typing.Processor:
    def describe(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.pop("stack_info", None)
        error = event.pop("exc_info", None)
        if isinstance(error, tuple):
            error = error[1]
        elif error and not isinstance(error, BaseException):
            error = sys.exc_info()[1]
        if isinstance(error, BaseException):
            event["exception" if "error" in event else "error"] = describe_error(error)
            if with_traceback:
                frames = traceback.format_exception(error, limit=-_TRACEBACK_FRAMES)
                event["traceback"] = "".join(frames)
        return event

    return describe
