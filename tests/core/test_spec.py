from __future__ import annotations

import pytest
from pydantic import ValidationError

from reconciler.core.spec import (
    DesiredState,
    HealthSpec,
    ManifestFile,
    OnChange,
    ProbeKind,
    PullPolicy,
    RecordSpec,
    ResourcesSpec,
    RestartSpec,
    SandboxSpec,
    Template,
    UlimitSpec,
    WorkspaceSpec,
    layer_of,
    merge,
)
from tests.core.builders import spec

HTTP = {"name": "HTTP", "container_port": 8000}


def complaint(model, value) -> str:
    with pytest.raises(ValidationError) as error:
        model.model_validate(value)
    return error.value.errors()[0]["msg"].removeprefix("Value error, ")


def test_an_empty_spec_has_the_engines_defaults():
    plain = SandboxSpec.model_validate({"image": "demo"})
    assert plain.command is None
    assert plain.workspace is None
    assert plain.health is None
    assert plain.resources == ResourcesSpec()
    assert (plain.pull, plain.on_change) == (PullPolicy.MISSING, OnChange.RECREATE)
    assert (plain.stop_timeout, plain.init) == (10.0, True)
    assert plain.restart.reset_after == 600.0


def test_a_workspace_is_kept_a_week_by_default():
    assert WorkspaceSpec(path="/w").retain == 604800.0
    assert WorkspaceSpec.model_validate({"path": "/w", "retain": "forever"}).retain == "forever"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": ""}, "String should have at least 1 character"),
        ({"image": 7}, "Input should be a valid string"),
        ({"imgae": "demo"}, "Extra inputs are not permitted"),
        ({"env": {"A": 1}}, "Input should be a valid string"),
        ({"env": {"1A": "x"}}, "String should match pattern '^[A-Za-z_][A-Za-z0-9_.-]*$'"),
        ({"env_file": "llm.env"}, "String should match pattern '^/'"),
        ({"init": "yes"}, "Input should be a valid boolean"),
        ({"pull": "sometimes"}, "Input should be 'missing', 'always' or 'never'"),
        ({"on_change": "x"}, "Input should be 'recreate', 'next-start' or 'ignore'"),
        ({"stop_timeout": "10"}, "must be a duration such as 500ms, 30s, 5m, 1h or 7d"),
        ({"workspace": {"path": "/w", "owner": "me"}}, r"pattern '^\d{1,10}(:\d{1,10})?$'"),
        ({"workspace": {"path": "/w", "retain": "x"}}, "such as 7d, 0 or forever"),
        ({"resources": {"cpus": 0}}, "Input should be greater than 0"),
        ({"resources": {"cpus": float("inf")}}, "Input should be a finite number"),
        ({"resources": {"memory": "4"}}, "must be a size such as 512m or 4g"),
        ({"resources": {"pids": 0}}, "Input should be greater than or equal to 1"),
        ({"restart": {"backoff": 0}}, "backoff must be longer than 0 and at most max_backoff"),
        ({"restart": {"backoff": "2m"}}, "backoff must be longer than 0 and at most max_backoff"),
        ({"ports": [{**HTTP, "container_port": 65536}]}, "less than or equal to 65535"),
        ({"ports": [HTTP, {**HTTP, "name": "B"}]}, "ports: each container_port may be used once"),
        ({"ports": [HTTP, {**HTTP, "container_port": 1}]}, "ports: each name may be used once"),
        ({"health": {}, "ports": []}, "a probe over the network needs a port"),
        ({"health": {"port": "X"}}, "health: port 'X' is not one of HTTP"),
        ({"health": {}, "network": {"mode": "none"}}, "can only have an exec probe"),
        ({"health": {"path": "health"}}, "String should match pattern '^/"),
        ({"health": {"path": "/a\nb"}}, "String should match pattern '^/"),
        ({"health": {"path": "/\x00"}}, "String should match pattern '^/"),
        ({"health": {"path": "/" + "x" * 2000}}, "String should have at most 2000 characters"),
        ({"health": {"scheme": "ftp"}}, "Input should be 'http' or 'https'"),
        ({"health": {"host": "a\r\nX: y"}}, "String should match pattern"),
        ({"health": {"host": "a/b"}}, "String should match pattern"),
        ({"health": {"headers": {"X-A": "b\r\nc"}}}, "String should match pattern"),
        ({"health": {"headers": {"X A": "b"}}}, "String should match pattern"),
        ({"health": {"headers": {"Host": "b"}}}, "the probe sets Host; set Host as `host`"),
        ({"health": {"kind": "docker"}, "healthcheck": "none"}, "`healthcheck: none` switches off"),
        ({"healthcheck": "off"}, "Input should be 'image' or 'none'"),
        ({"hostname": "-a"}, "String should match pattern"),
        ({"hostname": "a b"}, "String should match pattern"),
        ({"hostname": "x" * 64}, "String should match pattern"),
        (
            {"hostname": "a", "network": {"mode": "container:b"}},
            "hostname: a sandbox in another container's network",
        ),
        ({"health": {"kind": "exec"}}, "an exec probe needs a command"),
        ({"health": {"command": ["true"]}}, "only an exec probe has one"),
        ({"health": {"interval": 0}}, "interval and timeout must be longer than 0"),
        ({"health": {"timeout": "0s"}}, "interval and timeout must be longer than 0"),
        ({"health": {"failures": 0}}, "Input should be greater than or equal to 1"),
        (
            {"env": {"OH_SESSION_API_KEYS_0": "x"}},
            "env: OH_SESSION_API_KEYS_0 is made and kept by the reconciler",
        ),
    ],
)
def test_an_invalid_spec_is_rejected_with_a_reason(fields, message):
    assert message in complaint(SandboxSpec, {"image": "demo", "ports": [HTTP], **fields})


def test_a_probe_with_a_target_is_valid():
    assert spec(health={"port": "HTTP"}).health == HealthSpec(port="HTTP")
    assert spec(health={}).health == HealthSpec()
    assert spec(health={"headers": {"X-A": "b c"}}).health == HealthSpec(headers={"X-A": "b c"})
    for host in ("localhost", "a.example:8443", "[::1]:80", "127.0.0.1"):
        assert spec(health={"host": host}).health == HealthSpec(host=host)
    inside = {"kind": "exec", "command": ["true"]}
    docker = spec(health={"kind": "docker"}, ports=[], network={"mode": "none"})
    assert docker.health == HealthSpec(kind=ProbeKind.DOCKER)
    probed = spec(health=inside, ports=[], network={"mode": "none"})
    assert probed.health == HealthSpec(kind=ProbeKind.EXEC, command=("true",))


def test_limits_in_every_form():
    limits = {"gpus": ["GPU-1"], "ulimits": {"nofile": 9, "core": {"soft": 0, "hard": -1}}}
    made = ResourcesSpec.model_validate({**limits, "memory": "4g", "cpus": 2})
    assert (made.memory, made.cpus, made.gpus) == (4 << 30, 2.0, ("GPU-1",))
    assert made.ulimits == {"nofile": 9, "core": UlimitSpec(soft=0, hard=-1)}


@pytest.mark.parametrize("name", ["alice", "A.b_c-1", "x" * 63])
def test_a_valid_record_name_is_accepted(name):
    manifest = {"version": 1, "sandboxes": {name: {"spec": "demo"}}}
    record = ManifestFile.model_validate(manifest).sandboxes[name]
    assert record == RecordSpec(spec="demo", state=DesiredState.RUNNING)


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a b", "x" * 64, "a\n", "ä"])
def test_an_invalid_name_is_rejected(name):
    manifest = {"version": 1, "sandboxes": {name: {"spec": "demo"}}}
    assert "String should match pattern" in complaint(ManifestFile, manifest)


def test_an_unknown_version_is_rejected():
    assert complaint(ManifestFile, {"version": 2}) == "Input should be 1"


def test_replicas_are_bounded():
    assert RecordSpec(spec="demo", replicas=0).replicas == 0
    assert "10000" in complaint(RecordSpec, {"spec": "demo", "replicas": 10001})


def test_specs_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        RestartSpec().backoff = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("layers", "merged"),
    [
        ((), {}),
        (({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
        (({"a": 1}, {"a": 2}, {"a": 3}), {"a": 3}),
        (({"env": {"A": "1", "B": "1"}}, {"env": {"B": "2"}}), {"env": {"A": "1", "B": "2"}}),
        (({"ports": [1, 2]}, {"ports": [3]}), {"ports": [3]}),
        (({"health": {"path": "/"}}, {"health": None}), {"health": None}),
        (({"health": None}, {"health": {"path": "/"}}), {"health": {"path": "/"}}),
        (({"a": {"b": {"c": 1, "d": 1}}}, {"a": {"b": {"c": 2}}}), {"a": {"b": {"c": 2, "d": 1}}}),
    ],
)
def test_later_layers_override_earlier_ones(layers, merged):
    assert merge(*layers) == merged


def test_merging_does_not_change_the_layers():
    below = {"env": {"A": "1"}}
    merge(below, {"env": {"A": "2"}})
    assert below == {"env": {"A": "1"}}


def test_a_layer_has_only_the_fields_that_were_set():
    record = RecordSpec.model_validate(
        {
            "spec": "demo",
            "state": "paused",
            "env": {"A": "1"},
            "stop_timeout": "90s",
            "workspace": {"path": "/w", "retain": "forever"},
            "resources": {"memory": "1k"},
        }
    )
    assert layer_of(record) == {
        "env": {"A": "1"},
        "stop_timeout": "90s",
        "workspace": {"path": "/w", "retain": "forever"},
        "resources": {"memory": 1024},
    }
    assert layer_of(Template.model_validate(layer_of(record))) == layer_of(record)
