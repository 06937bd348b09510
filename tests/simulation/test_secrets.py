"""Values of variables with secret-looking names appear in no output."""

import json
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.errors import Refused
from reconciler.telemetry.redact import redactor
from tests.simulation.stage import Stage

SECRET = "hunter2-hunter2"


def crashing(word: str) -> dict[str, Any]:
    """Print the secret and exit, repeatedly."""
    return {"command": ["sh", "-c", f"echo {word}; exit 3"], "restart": {"backoff": "1s"}}


async def told(stage: Stage) -> str:
    """Return all that the ledger and the table have about alice."""
    entries = await stage.store.events("alice")
    return f"{entries} {json.dumps(stage.row('alice'), default=str)}"


async def test_the_value_of_a_variable_is_hidden(stage: Stage):
    await stage.edit_or_start({"alice": {"env": {"LLM_API_KEY": SECRET}, **crashing(SECRET)}})
    await stage.after(3)
    assert SECRET not in await told(stage)
    assert "***" in await told(stage)


async def test_the_value_in_an_env_file_is_hidden(stage: Stage, tmp_path: Path):
    file = tmp_path / "env"
    file.write_text(f"DB_PASSWORD={SECRET}\nCOLOUR=bluegreen\n")
    wanted = {"alice": {"env_file": str(file), **crashing(f"{SECRET} bluegreen")}}
    await stage.edit_or_start(wanted)
    await stage.after(3)
    assert SECRET not in await told(stage)
    assert "bluegreen" in await told(stage)


async def test_engine_errors_are_redacted(stage: Stage):
    stage.engine.fail_next("create", Refused(f"no program {SECRET}"))
    await stage.converge({"alice": {"env": {"LLM_API_KEY": SECRET}}})
    assert SECRET not in await told(stage)
    assert "no program ***" in await told(stage)


async def test_former_secrets_are_redacted_for_an_hour(stage: Stage):
    former, present = "once-in-the-file", "now-in-the-file"
    await stage.converge({"alice": {"env": {"TOKEN": former}}})
    await stage.converge({"alice": {"env": {"TOKEN": present}}})
    assert redactor.clean(f"{former} {present}") == "*** ***"
    await stage.after(2 * 3600)
    assert redactor.clean(f"{former} {present}") == f"{former} ***"


@pytest.mark.parametrize(("name", "value"), [("COLOUR", "bluegreen"), ("MAX_TOKENS", "100000")])
async def test_other_values_are_not_redacted(stage: Stage, name: str, value: str):
    await stage.converge({"alice": {"env": {name: value}}})
    assert redactor.clean(value) == value


async def test_secrets_are_redacted_right_after_a_restart(stage: Stage):
    await stage.converge({"alice": {"env": {"TOKEN": SECRET}}})
    stage.file.write_text("{")
    await stage.restart()
    assert redactor.clean(SECRET) == "***"
