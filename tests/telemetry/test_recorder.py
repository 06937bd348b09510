"""The recorder writes the fields of an event to the log and to the ledger."""

import pytest
from structlog.testing import capture_logs

from reconciler.telemetry import events
from reconciler.telemetry.recorder import Recorder

ERROR = events.SandboxError(sandbox="alice", cause="running is desired", error="no", source="pull")


@pytest.fixture
def ledger() -> list[tuple]:
    return []


@pytest.fixture
def recorder(ledger: list[tuple]) -> Recorder:
    made = Recorder(lambda: 0.0)
    made.ledger = lambda *entry: ledger.append(entry)
    return made


def test_an_optional_field_without_a_value_is_left_out(recorder: Recorder):
    with capture_logs() as lines:
        recorder.log(events.EngineConnected(engine="docker", version=None))
    assert lines == [{"event": "engine.connected", "log_level": "info", "engine": "docker"}]


def test_tell_writes_the_same_to_log_and_ledger(recorder: Recorder, ledger: list[tuple]):
    with capture_logs() as lines:
        recorder.tell(ERROR)
    (line,) = lines
    assert line == {"event": "sandbox.error", "log_level": "error", **ERROR.fields()}
    data = {"error": "no", "source": "pull"}
    assert ledger == [("sandbox.error", "alice", "running is desired", data)]


def test_note_writes_to_the_ledger_alone(recorder: Recorder, ledger: list[tuple]):
    with capture_logs() as lines:
        recorder.note(ERROR)
    assert not lines
    assert len(ledger) == 1


def test_log_writes_to_the_log_alone(recorder: Recorder, ledger: list[tuple]):
    with capture_logs() as lines:
        recorder.log(ERROR)
    assert len(lines) == 1
    assert not ledger


def test_a_repeated_warning_is_counted_until_it_is_resolved():
    now = 0.0
    recorder = Recorder(lambda: now)
    lost = events.EngineLost(error="gone")
    with capture_logs() as lines:
        recorder.complain(lost)
        recorder.complain(lost)
        now = 61.0
        recorder.complain(lost)
        assert recorder.resolve(events.EngineLost) == 3
        recorder.complain(lost)
    assert [line.get("repeated") for line in lines] == [None, 2, None]


def test_warnings_about_different_things_are_counted_apart(recorder: Recorder):
    with capture_logs() as lines:
        for about in ("alice", "bob"):
            recorder.complain(
                events.EngineSlow(call="list", seconds=1.0, error="late"), about=about
            )
    assert len(lines) == 2
