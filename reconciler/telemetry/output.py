"""Where log lines go: JSON or console text on a stream, or fields in the journal."""

import contextlib
import json
import os
import select
from collections.abc import Callable
from typing import Protocol, TextIO

import structlog
from structlog.typing import EventDict

from reconciler.core.text import inert_lines
from reconciler.telemetry.journald import Journal, to_fields

PATIENCE = 0.1
_ATOMIC = 4096  # PIPE_BUF: a pipe that polls as writable takes this much without blocking
_FIRST = ("timestamp", "level", "event")
Render = Callable[[EventDict], str]


class Output(Protocol):
    """Takes one sanitised log line: plain JSON data, with ``level`` and ``event``."""

    def emit(self, event: EventDict) -> None:
        """Write the line, or drop it; never raise and never block for long."""
        ...


class LineWriter:
    """Writes lines to a stream, and drops them while the reader does not read.

    A stalled reader costs the event loop one tenth of a second once; then lines are dropped until
    it reads again. A reader that is gone costs nothing.

    Args:
        stream: The stream; its descriptor is used if it has one, so that nothing is buffered.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fd: int | None = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._fd = stream.fileno()
        self._poll = select.poll()
        self._stalled = False
        self._torn = False
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLOUT)

    def write(self, line: str) -> None:
        """Write one line and a line break."""
        with contextlib.suppress(OSError, ValueError):
            if self._fd is None:
                self._stream.write(f"{line}\n")
            else:
                self._write_all(self._fd, f"{line}\n".encode(errors="backslashreplace"))

    def _write_all(self, fd: int, data: bytes) -> None:
        # A line that a stalled reader cut off is ended first, so that this line stands alone.
        rest = memoryview(b"\n" + data if self._torn else data)
        whole = len(rest)
        while rest:
            patience = 0 if self._stalled else PATIENCE
            self._stalled = not self._poll.poll(patience * 1000)
            if self._stalled:
                break
            rest = rest[os.writev(fd, [rest[:_ATOMIC]]) :]
        if len(rest) != whole:
            self._torn = len(rest) > 0


class TextOutput:
    """Renders each line as text, and writes it to a stream."""

    def __init__(self, writer: LineWriter, render: Render) -> None:
        self._writer = writer
        self._render = render

    def emit(self, event: EventDict) -> None:
        """Write the line."""
        self._writer.write(self._render(event))


class JournalOutput:
    """Sends each line with its fields to the journal; to the fallback if there is no journal."""

    def __init__(self, journal: Journal, fallback: Output) -> None:
        self._journal = journal
        self._fallback = fallback

    def emit(self, event: EventDict) -> None:
        """Send the line."""
        if not self._journal.send(to_fields(event)):
            self._fallback.emit(event)


def json_line(event: EventDict) -> str:
    """Render a line as one JSON object: timestamp, level and event first, ASCII only.

    ASCII, because U+2028 ends a line for some readers, and C1 controls act on terminals.
    """
    first = {name: event[name] for name in _FIRST if name in event}
    return json.dumps({**first, **event}, separators=(",", ":"), default=str)


def console_renderer(*, colours: bool) -> Render:
    """Return the renderer for people: one line each, whole seconds, never a traceback."""
    renderer = structlog.dev.ConsoleRenderer(
        colors=colours, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )

    def render(event: EventDict) -> str:
        # structlog itself quotes line breaks and tabs.
        shown = {
            name: inert_lines(value) if isinstance(value, str) else value
            for name, value in event.items()
            if name != "traceback"
        }
        if isinstance(stamp := shown.get("timestamp"), str):
            shown["timestamp"] = f"{stamp[:19]}Z"
        return str(renderer(None, "", shown))

    return render
