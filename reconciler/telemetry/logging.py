"""Sets up logging: structlog's lines as JSON, for people, or as fields of the journal.

The ``Recorder`` logs typed events with ``structlog.get_logger()``. What a line carries beyond the
fields of its event (``reconcile_id``) is bound with ``structlog.contextvars``.
"""

import logging
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any, Literal, TextIO

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
    """Routes every log line of this process, libraries' too, to one place.

    May be called again: loggers that exist follow.

    Args:
        log_format: ``auto`` takes the journal where the stream leads there, colours on a terminal,
            and JSON elsewhere.
        level: The least level that is written: debug, info, warning, error or critical.
        stream: Where text goes; standard error where None.
        redact: The secrets that no line may show.

    Raises:
        ValueError: The level is none of these.
    """
    if level not in _LEVELS:
        raise ValueError(f"log level {level!r}: must be one of {', '.join(_LEVELS)}")
    sink = stream or sys.stderr
    _configure_structlog(_output(log_format, sink), _LEVELS[level], redact)
    _capture_libraries()


def choose_format(stream: TextIO, environ: Mapping[str, str] = os.environ) -> Format:
    """Says what ``auto`` means for a stream."""
    if is_journal(stream, environ.get("JOURNAL_STREAM", "")):
        return "journal"
    return "console" if stream.isatty() else "json"


def is_journal(stream: TextIO, journal_stream: str) -> bool:
    """Says whether a stream leads to the journal.

    Args:
        stream: The stream, usually standard error.
        journal_stream: ``$JOURNAL_STREAM``, ``DEVICE:INODE``. It is inherited by processes whose
            output was redirected since, so it proves nothing until it matches the stream.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


class LibraryHandler(logging.Handler):
    """Hands what libraries log through the standard library to structlog as ``library.log``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Logs the record with its own level."""
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        event = events.LibraryLog(logger=record.name, message=_message_of(record))
        log = structlog.get_logger()
        log.log(level, event.event_name, **event.fields(), exc_info=record.exc_info)


def _configure_structlog(output: Output, level: int, redact: Redactor) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _error_processor(with_traceback=level <= logging.DEBUG),
            sanitizer(redact),
            _hand_over,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Sink(output),
        cache_logger_on_first_use=False,  # a module's logger must follow a later configure()
    )


def _output(log_format: Format, stream: TextIO) -> Output:
    chosen = choose_format(stream) if log_format == "auto" else log_format
    writer = LineWriter(stream)
    if chosen == "console":
        colours = stream.isatty() and not os.environ.get("NO_COLOR")
        return TextOutput(writer, console_renderer(colours=colours))
    text = TextOutput(writer, json_line)
    return JournalOutput(Journal(), text) if chosen == "journal" else text


def _capture_libraries() -> None:
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not _is_ours_or_stream(handler)]
    root.addHandler(LibraryHandler())
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


def _is_ours_or_stream(handler: logging.Handler) -> bool:
    # Exact types: subclasses are tools of test runners and debuggers, which keep theirs.
    return type(handler) in (LibraryHandler, logging.StreamHandler)


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a library's wrong format string is not our failure
        return str(record.msg)


class _Sink:
    """The innermost logger: every level's method takes the finished line."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def msg(self, event: EventDict) -> None:
        self._output.emit(event)

    debug = info = warning = error = critical = log = msg


def _hand_over(_logger: WrappedLogger, _method: str, event: EventDict) -> Any:
    # structlog would spread a dict into keyword arguments; the sink takes it whole.
    return (event,), {}


def _error_processor(*, with_traceback: bool) -> structlog.typing.Processor:
    def describe(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.pop("stack_info", None)
        error = _error_of(event.pop("exc_info", None))
        if error is not None:
            event["exception" if "error" in event else "error"] = describe_error(error)
            if with_traceback:
                event["traceback"] = _traceback_of(error)
        return event

    return describe


def _error_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    elif exc_info and not isinstance(exc_info, BaseException):
        exc_info = sys.exc_info()[1]
    return exc_info if isinstance(exc_info, BaseException) else None


def _traceback_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error, limit=-_TRACEBACK_FRAMES))
