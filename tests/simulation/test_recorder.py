"""An event has the fields that the catalogue names, in the log and in the ledger."""

import pytest
import structlog
from structlog.testing import capture_logs

from reconciler.telemetry.events import Event
from reconciler.telemetry.recorder import Recorder


@pytest.fixture
def ledger() -> list[tuple]:
    return []


def recorder(ledger: list[tuple], *, strict: bool) -> Recorder:
    made = Recorder(lambda: 0.0, strict=strict)
    made.ledger = lambda *entry: ledger.append(entry)
    return made


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        (Event.ENGINE_LOST, {"error": "gone", "colour": "red"}),
        (Event.ENGINE_LOST, {}),
        (Event.ENGINE_LOST, {"error": None}),
        (Event.SANDBOX_STARTED, {"container": "c", "seconds": 1.0}),
    ],
    ids=["unknown", "missing", "none", "no sandbox"],
)
def test_a_wrong_field_fails_a_test(ledger, event, fields):
    with pytest.raises(ValueError, match=str(event)):
        recorder(ledger, strict=True).log(event, **fields)


def test_a_wrong_field_is_dropped_and_reported_in_production(ledger):
    with capture_logs() as lines:
        recorder(ledger, strict=False).log(Event.ENGINE_LOST, colour="red")
    malformed, lost = lines
    assert malformed["event"] == "log.malformed"
    assert (malformed["unknown"], malformed["missing"]) == (["colour"], ["error"])
    assert lost == {"event": "engine.lost", "log_level": "error"}


def test_what_a_pass_binds_counts(ledger):
    with structlog.contextvars.bound_contextvars(sandbox="alice", cause="it died"):
        recorder(ledger, strict=True).log(Event.SANDBOX_STARTED, container="c", seconds=1.0)


def test_log_and_ledger_say_the_same(ledger):
    with capture_logs() as lines:
        made = recorder(ledger, strict=False)
        made.tell(Event.SANDBOX_ERROR, "alice", "running is desired", error="no", colour="red")
    (line,) = [line for line in lines if line["event"] == "sandbox.error"]
    assert (line["sandbox"], line["cause"], line["error"]) == ("alice", "running is desired", "no")
    assert ledger == [("sandbox.error", "alice", "running is desired", {"error": "no"})]
