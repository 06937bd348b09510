"""The shipped examples and the schema agree with the models and the settings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from reconciler.core.disk_pressure import PressureLimits
from reconciler.core.errors import SettingsError
from reconciler.core.spec import DesiredState, ProbeKind
from reconciler.manifest.json_schema import json_schema, json_schema_text
from reconciler.manifest.loader import load
from reconciler.manifest.settings_file import load as load_settings
from reconciler.settings import Settings

CONFIG = Path(__file__).parents[2] / "config"
EXAMPLES = ("desired.yaml", "openhands.yaml")
# Resolved at the start of the daemon.
FOUND_AT_START = {"desired", "state_dir"}


def test_committed_schema_is_current():
    assert (CONFIG / "desired.schema.json").read_text() == json_schema_text()


def test_schema_is_valid():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json.loads(json_schema_text()) == json_schema()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_valid_and_name_the_schema(name):
    text = (CONFIG / name).read_text()
    assert text.startswith("# yaml-language-server: $schema=desired.schema.json\n")
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(text))
    found = load(CONFIG / name)
    assert not found.diagnostics
    assert not found.fatal
    assert not found.empty


def test_example_has_every_state_and_kind_of_probe():
    records = load(CONFIG / "desired.yaml").records.values()
    assert {record.state for record in records} == set(DesiredState)
    assert {record.spec.health.kind for record in records if record.spec.health} == (
        # The demo image has no HEALTHCHECK.
        set(ProbeKind) - {ProbeKind.DOCKER}
    )
    assert {record.spec.image for record in records} == {"reconciler-demo:latest"}


_SPEC = {"image": "i"}


@pytest.mark.parametrize(
    ("spec", "record", "valid"),
    [
        ({}, {}, True),
        ({"workspace": {"retain": "1d"}}, {}, False),
        ({}, {"workspace": {"retain": "1d"}}, True),
        ({}, {"resources": {"ulimits": {"nofile": {"soft": 1}}}}, True),
        ({"health": None, "workspace": None}, {"health": None, "workspace": None}, True),
        ({"stop_timeout": "3s"}, {"stop_timeout": 0}, True),
        ({"stop_timeout": "3 s"}, {}, False),
        ({"stop_timeout": 3}, {}, False),
        ({"imgae": "x"}, {}, False),
        ({}, {"imgae": "x"}, False),
        ({"env": {"A B": "x"}}, {}, False),
        ({"env": {"A": 1}}, {}, False),
        ({"resources": {"gpus": "all"}}, {"resources": {"gpus": 2}}, True),
        ({"resources": {"gpus": 0}}, {}, False),
        ({}, {"state": "paused", "replicas": 3}, True),
        ({}, {"state": "pausd"}, False),
    ],
)
def test_schema_and_models_agree(spec, record, valid):
    file = {"version": 1, "specs": {"s": _SPEC | spec}, "sandboxes": {"a": {"spec": "s"} | record}}
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(file) == valid


@pytest.mark.parametrize("section", [{"specs": None}, {"sandboxes": None}])
def test_section_may_be_null(section):
    jsonschema.Draft202012Validator(json_schema()).validate({"version": 1} | section)


def test_name_must_be_valid():
    file = {"version": 1, "specs": {"a b": _SPEC}}
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(file)


# --- reconciler.yaml ---


def shown() -> dict[str, str]:
    """Return the settings that the file lists, with their lines without the #."""
    lines = (CONFIG / "reconciler.yaml").read_text().splitlines()
    found = [match for line in lines if (match := re.fullmatch(r"# ([a-z_]+): (\S.*)", line))]
    return {match[1]: match[0].removeprefix("# ") for match in found if _is_setting(match[1])}


def _is_setting(name: str) -> bool:
    return name in Settings.model_fields or "_" in name


def test_file_lists_every_setting():
    assert sorted(shown()) == sorted(Settings.model_fields)


def test_listed_values_are_the_defaults(tmp_path, monkeypatch):
    for name in list(shown()):
        monkeypatch.delenv(f"RECONCILER_{name.upper()}", raising=False)
    path = tmp_path / "reconciler.yaml"
    path.write_text("\n".join(shown().values()))
    read = load_settings(path).model_dump(exclude=FOUND_AT_START)
    assert read == Settings.model_construct().model_dump(exclude=FOUND_AT_START)


def test_size_in_a_variable_may_be_a_bare_number(monkeypatch):
    monkeypatch.setenv("RECONCILER_DISK_MIN_FREE", "0")
    monkeypatch.setenv("RECONCILER_DISK_RESUME_FREE", "4096")
    read = load_settings()
    assert (read.disk_min_free, read.disk_resume_free) == (0, 4096)


def test_each_setting_has_a_comment():
    lines = (CONFIG / "reconciler.yaml").read_text().splitlines()
    for line in shown().values():
        above = lines[lines.index(f"# {line}") - 1]
        assert re.match(r"# \S", above), line


@pytest.mark.parametrize(
    ("set_", "limits"),
    [
        ({}, (1 << 30, 1.0, 3 << 29, 1.5)),
        ({"disk_min_free": "4g"}, (4 << 30, 1.0, 6 << 30, 1.5)),
        ({"disk_min_free_percent": 80}, (1 << 30, 80.0, 3 << 29, 100.0)),
        ({"disk_min_free": 0, "disk_min_free_percent": 0}, (0, 0.0, 0, 0.0)),
        ({"disk_resume_free": "1g", "disk_resume_free_percent": 5}, (1 << 30, 1.0, 1 << 30, 5.0)),
    ],
)
def test_disk_limits(set_, limits):
    assert load_settings(**set_).disk_limits == PressureLimits(*limits)


@pytest.mark.parametrize(
    ("set_", "wrong"),
    [
        ({"disk_resume_free": "512m"}, "--disk-resume-free: must not be below disk_min_free"),
        ({"disk_min_free": "2g", "disk_resume_free": "1g"}, "--disk-resume-free: must not be"),
        (
            {"disk_resume_free_percent": 0.5},
            "--disk-resume-free-percent: must not be below disk_min_free_percent",
        ),
        ({"disk_min_free_percent": 101}, "--disk-min-free-percent: "),
    ],
)
def test_resume_limit_below_the_minimum_is_refused(set_, wrong):
    with pytest.raises(SettingsError, match=wrong):
        load_settings(**set_)


def test_shipped_file_sets_nothing():
    assert yaml.safe_load((CONFIG / "reconciler.yaml").read_text()) is None
