"""Log lines in each format."""

import io
import json
import logging as stdlib_logging
import os
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog
from blockbuster import blockbuster_ctx

from reconciler.telemetry.logging import LibraryHandler, choose_format, configure, is_journal
from reconciler.telemetry.output import JournalOutput, LineWriter
from reconciler.telemetry.redact import Redactor

log = structlog.get_logger()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _restored():
    root = stdlib_logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    stdlib_logging.captureWarnings(capture=False)
    root.handlers, root.level = handlers, level


@pytest.fixture
def stream():
    return io.StringIO()


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail():
    try:
        Path("/dev/null/x").stat()
    except OSError as cause:
        raise ValueError("cannot read") from cause


def test_json_is_one_object_a_line_in_a_fixed_order(stream):
    configure("json", stream=stream)
    log.info("sandbox.started", sandbox="alice", seconds=0.25, cause="declared")
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert datetime.fromisoformat(line.pop("timestamp")).tzinfo == UTC
    assert line == {
        "level": "info",
        "event": "sandbox.started",
        "sandbox": "alice",
        "seconds": 0.25,
        "cause": "declared",
    }


def test_container_output_stays_one_line(stream):
    configure("json", stream=stream)
    log.info("sandbox.died", last_lines=["a\nb\r\u2028c\x1b[2J\x9b"], odd="\udc80\0")
    assert len(stream.getvalue().splitlines()) == 1
    assert stream.getvalue().isascii()
    assert lines(stream)[0]["last_lines"] == ["a\nb\\r\\u2028c\\x1b[2J\\x9b"]


def test_bound_context_is_in_every_line(stream):
    configure("json", stream=stream)
    with structlog.contextvars.bound_contextvars(sandbox="alice", reconcile_id="r1"):
        log.info("sandbox.paused")
    assert lines(stream)[0]["reconcile_id"] == "r1"


def test_levels_are_filtered_and_can_be_changed_later(stream):
    configure("json", "warning", stream)
    log.info("sandbox.paused")
    configure("json", "debug", stream)
    log.debug("library.log")
    assert [line["event"] for line in lines(stream)] == ["library.log"]


def test_an_unknown_level_is_an_error():
    with pytest.raises(ValueError, match="must be one of debug, info"):
        configure("json", "loud")


def test_an_exception_is_a_chain_and_at_debug_a_traceback(stream):
    for level in ("info", "debug"):
        configure("json", level, stream)
        try:
            fail()
        except ValueError:
            log.exception("task.failed")
    short, full = lines(stream)
    assert short["error"].startswith("ValueError: cannot read <- NotADirectoryError: ")
    assert short["level"] == "error"
    assert "traceback" not in short
    assert "Traceback" in full["traceback"]


def test_an_error_field_is_not_replaced(stream):
    configure("json", stream=stream)
    log.error("task.failed", error="said", exc_info=ValueError("raised"))
    assert lines(stream)[0]["error"] == "said"
    assert lines(stream)[0]["exception"] == "ValueError: raised"


def test_exc_info_outside_an_exception_adds_nothing(stream):
    configure("json", stream=stream)
    log.info("task.failed", exc_info=True, stack_info=True)  # noqa: LOG014 - the point
    assert set(lines(stream)[0]) == {"timestamp", "level", "event"}


def test_secrets_are_redacted_in_tracebacks_and_libraries(stream):
    redact = Redactor()
    redact.register("s3cr3t-value")
    configure("json", "debug", stream, redact=redact)
    log.info("sandbox.created", env={"A": "s3cr3t-value"}, session_key="x")
    log.error("task.failed", exc_info=ValueError("s3cr3t-value"))
    stdlib_logging.getLogger("lib").error("got %s", "s3cr3t-value")
    assert len(lines(stream)) == 3
    assert "s3cr3t-value" not in stream.getvalue()
    assert lines(stream)[0]["session_key"] == "***"


def test_libraries_are_logged_from_warning_up(stream):
    configure("json", stream=stream)
    library = stdlib_logging.getLogger("aiohttp.client")
    library.info("chatter")
    library.warning("odd %d", 7)
    broken = stdlib_logging.LogRecord("x", 45, "", 1, "wrong %d", ("format",), None)
    LibraryHandler().emit(broken)
    seen = [(x["event"], x["level"], x["logger"], x["message"]) for x in lines(stream)]
    assert seen == [
        ("library.log", "warning", "aiohttp.client", "odd 7"),
        ("library.log", "error", "x", "wrong %d"),
    ]


def test_python_warnings_are_library_lines(stream):
    configure("json", stream=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        stdlib_logging.captureWarnings(capture=False)
        stdlib_logging.captureWarnings(capture=True)
        warnings.warn("old", UserWarning, stacklevel=1)
        stdlib_logging.captureWarnings(capture=False)
    assert lines(stream)[0]["logger"] == "py.warnings"


def test_configuring_twice_does_not_log_twice(stream):
    configure("json", stream=stream)
    configure("json", stream=stream)
    stdlib_logging.getLogger("x").warning("once")
    assert len(lines(stream)) == 1


def test_the_console_is_coloured_on_a_terminal_only(stream, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    for sink in (terminal, stream):
        configure("console", stream=sink)
        log.info("sandbox.started", sandbox="alice")
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b[" not in stream.getvalue()
    assert "sandbox.started" in stream.getvalue()
    assert "sandbox=alice" in stream.getvalue()


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    configure("console", stream=terminal)
    log.info("sandbox.started")
    assert "\x1b[" not in terminal.getvalue()


def test_the_console_shows_no_traceback_and_no_controls(stream):
    configure("console", "debug", stream)
    log.error("task.failed", exc_info=ValueError("bad"), line="\x1b[2Jx\x9b", two="a\nb")
    assert len(stream.getvalue().splitlines()) == 1
    assert "ValueError: bad" in stream.getvalue()
    assert "Traceback" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert "\x9b" not in stream.getvalue()


def test_auto_chooses_the_format_by_the_stream(tmp_path, stream):
    assert choose_format(stream, {}) == "json"
    assert choose_format(Terminal(), {}) == "console"
    with (tmp_path / "file").open("w") as file:
        status = os.fstat(file.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert choose_format(file, environ) == "journal"
        assert choose_format(file, {"JOURNAL_STREAM": "1:2"}) == "json"
        assert choose_format(stream, environ) == "json"


@pytest.mark.parametrize("value", ["", ":", "x:y", "8:1:1"])
def test_an_invalid_journal_stream_is_no_journal(value, tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert not is_journal(file, value)


def test_without_a_journal_the_line_goes_to_the_fallback():
    seen = []
    for taken in (True, False):
        journal = SimpleNamespace(send=lambda _fields, taken=taken: taken)
        JournalOutput(journal, SimpleNamespace(emit=seen.append)).emit({"event": "x"})
    assert seen == [{"event": "x"}]


@pytest.fixture
def pipe():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "w") as writer:
        yield reader, writer


def test_a_reader_that_is_gone_is_no_error(pipe):
    reader, writer = pipe
    reader.close()
    configure("json", stream=writer)
    log.info("sandbox.started")


def test_a_closed_stream_is_no_error():
    stream = io.StringIO()
    stream.close()
    LineWriter(stream).write("x")


def test_a_stalled_reader_costs_little_and_gets_whole_lines_again(pipe):
    reader, writer = pipe
    out = LineWriter(writer)
    begin = time.monotonic()
    for n in range(1000):
        out.write(json.dumps({"n": n, "fill": "x" * 1000}))
    # If each of them waited as the first does, it would take 100 s.
    assert time.monotonic() - begin < 30
    os.set_blocking(reader.fileno(), False)
    head = reader.read()
    out.write('{"n":"last"}')
    text = (head + reader.read()).decode()
    *whole, torn, last = text.splitlines()
    assert [json.loads(line)["n"] for line in whole] == list(range(len(whole)))
    assert len(whole) > 10
    assert json.loads(last) == {"n": "last"}
    assert torn == "" or torn.startswith('{"n": ')


async def test_logging_in_the_event_loop_is_no_blocking_call(pipe):
    _, writer = pipe
    configure("json", stream=writer)
    with blockbuster_ctx():
        log.info("sandbox.started")
        log.error("task.failed", exc_info=ValueError("x"))
