"""An export loads as the same records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.core.spec import DesiredState, MountSpec, PortSpec, SandboxSpec
from reconciler.manifest.export import export
from reconciler.manifest.loader import DeclaredRecord, SpecDefaults, load

CONFIG = Path(__file__).parents[2] / "config"
DEFAULTS = SpecDefaults(
    mounts=(MountSpec(host_path="/h", container_path="/c"),),
    exposed_ports=(PortSpec(name="D", container_port=1),),
    health_check_path="/alive",
)


def known(records):
    return {record.name: replace(record, file="", line=0) for record in records}


def reloaded(path, records, defaults):
    path.write_text(export(records, defaults))
    found = load(path, defaults)
    assert not found.diagnostics, path.read_text()
    return known(found.records.values())


@pytest.mark.parametrize("defaults", [SpecDefaults(), DEFAULTS])
@pytest.mark.parametrize("name", ["desired.yaml", "openhands.yaml"])
def test_examples(tmp_path, name, defaults):
    records = load(CONFIG / name, defaults).records.values()
    assert records
    assert reloaded(tmp_path / "x.yaml", records, defaults) == known(records)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["no", "012", "0o14", "1e3", "~", "null", "1:30", "<<", "=", "- a", "a: b", "#", "", "\u2028"],
)
_SPECS = st.fixed_dictionaries(
    {"image": st.sampled_from(["a", "12", "true"])},
    optional={
        "command": st.none() | st.lists(_TEXT, max_size=2),
        "env": st.dictionaries(st.sampled_from(["A", "B", "null"]), _TEXT, max_size=2),
        "ports": st.sampled_from([[], [{"name": "A", "container_port": 1}]]),
        "mounts": st.just([]),
        "workspace": st.none() | st.just({"path": "/w", "retain": "forever"}),
        "health": st.none() | st.just({"kind": "exec", "command": ["t"]}),
        "network": st.sampled_from([{"mode": "none"}, {"extra_hosts": {}}]),
        "resources": st.sampled_from([{"cpus": 0.5, "gpus": "all"}, {"memory": "4g"}]),
        "stop_timeout": st.sampled_from(["10s", "1500ms", 0]),
    },
)


@given(
    specs=st.dictionaries(
        st.sampled_from(["a", "b", "12", "no", "c-1"]),
        st.tuples(st.sampled_from(["s", "t"]), st.sampled_from(DesiredState), _SPECS),
        max_size=4,
    ),
    defaults=st.sampled_from([SpecDefaults(), DEFAULTS]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_records(tmp_path, specs, defaults):
    records = [
        DeclaredRecord(name, spec_name, state, SandboxSpec.model_validate(spec), "", 0)
        for name, (spec_name, state, spec) in specs.items()
    ]
    assert reloaded(tmp_path / "x.yaml", records, defaults) == known(records)


def test_shared_values_are_in_the_spec_only(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "version: 1\nspecs: {s: {image: i, command: [a]}}\n"
        "sandboxes: {x: {spec: s}, y: {spec: s, state: paused, env: {A: b}}}\n",
    )
    text = export(load(path).records.values())
    assert text.count("command") == 1
    assert "  x:\n    spec: s\n  y:\n    spec: s\n    state: paused\n    env:\n      A: b\n" in text
