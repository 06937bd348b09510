from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from reconciler.core import naming
from reconciler.core.container_config import (
    HASH_VERSION,
    InstanceConfig,
    container_config,
    environment,
    is_leased,
    published,
    same_spec,
    spec_hash,
)
from reconciler.core.snapshot import Identity
from reconciler.core.spec import Model, ResourcesSpec, SandboxSpec
from tests.core.builders import HASH, IDENTITY, KEY, NAME, VOLUME, desired, spec

AROUND = InstanceConfig("default", "me", "oh-agent-server-", "127.0.0.1", "http://host:8/{id}")
FULL: Final = {
    "image": "demo:2",
    "command": ["--port", "8000"],
    "env": {"LOG_JSON": "true"},
    "env_file": "/etc/llm.env",
    "working_dir": "/workspace/project",
    "user": "10001:10001",
    "init": False,
    "pull": "always",
    "ports": [
        {"name": "HTTP", "container_port": 8000, "description": "server"},
        {"name": "VSCODE", "container_port": 8001},
    ],
    "workspace": {"path": "/workspace", "retain": "1d", "owner": "10001:10001"},
    "mounts": [{"host_path": "/srv", "container_path": "/models", "mode": "ro"}],
    "health": {"path": "/alive", "port": "HTTP"},
    "resources": {
        "cpus": 2,
        "memory": "4g",
        "pids": 512,
        "shm": "64m",
        "gpus": "all",
        "ulimits": {"nofile": 1024},
        "devices": ["/dev/kvm"],
    },
    "security": {"cap_drop": ["ALL"], "no_new_privileges": True, "runtime": "runsc"},
    "network": {"mode": "agents", "extra_hosts": {}},
    "log": {"max_size": "1m", "max_files": 2},
    "restart": {"backoff": "2s"},
    "on_change": "next-start",
    "stop_timeout": "5s",
}


def hashed(
    made: SandboxSpec, instance_config: InstanceConfig = AROUND, digest: str | None = None
) -> str:
    return spec_hash(made, instance_config, digest)


# A release that changes one of these recreates every container of every user.
@pytest.mark.parametrize(
    ("made", "instance_config", "digest", "expected"),
    [
        (SandboxSpec(image="demo:1"), AROUND, None, "1:686148a62c9c12092afee8b62d169947"),
        (spec(), AROUND, None, "1:f048a2e81cce4106ca61fa89e83f5c86"),
        (SandboxSpec.model_validate(FULL), AROUND, "d1", "1:8b1f73ac2f20bff765edb30f5a6819c8"),
        (
            spec(),
            replace(AROUND, webhook_url=None, publish_address="0.0.0.0"),
            None,
            "1:bde2b6cca79d973013bf983522e7d7a5",
        ),
    ],
    ids=["minimal", "plain", "full", "other surroundings"],
)
def test_hashes_stay_what_they_were(made, instance_config, digest, expected):
    assert hashed(made, instance_config, digest) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"health": {"path": "/alive"}},
        {"restart": {"backoff": "5s"}},
        {"on_change": "ignore"},
        {"stop_timeout": "1s"},
        {"pull": "always"},
        {"workspace": {"path": "/workspace", "retain": "forever"}},
        {"ports": [{"name": "HTTP", "container_port": 8000, "description": "text"}]},
        {"init": True, "command": None, "resources": {}, "network": {"mode": "bridge"}},
        {"env": {}},
    ],
)
def test_fields_outside_of_the_container_do_not_change_the_hash(fields):
    assert hashed(spec(**fields)) == hashed(spec())


@pytest.mark.parametrize(
    "fields",
    [
        *({name: FULL[name]} for name in ("image", "command", "env", "env_file", "working_dir")),
        *({name: FULL[name]} for name in ("user", "init", "ports", "mounts", "resources", "log")),
        *({name: FULL[name]} for name in ("security", "network")),
        {"command": []},
        {"workspace": None},
        {"workspace": {"path": "/elsewhere"}},
        {"workspace": {"path": "/workspace", "owner": "1:1"}},
        {"ports": [{"name": "WEB", "container_port": 8000}]},
        {"ports": []},
    ],
    ids=str,
)
def test_fields_of_the_container_change_the_hash(fields):
    assert hashed(spec(**fields)) != hashed(spec())


def test_the_instance_config_changes_the_hash():
    plain = hashed(spec())
    assert hashed(spec(), digest="d1") != plain
    assert hashed(spec(), replace(AROUND, webhook_url=None)) != plain
    assert hashed(spec(), replace(AROUND, publish_address="0.0.0.0")) != plain
    assert hashed(spec(), replace(AROUND, instance="other", prefix="other-")) == plain


def test_the_order_of_a_mapping_does_not_change_the_hash():
    one, other = {"A": "1", "B": "2"}, {"B": "2", "A": "1"}
    assert hashed(spec(env=one)) == hashed(spec(env=other))


class LaterResources(ResourcesSpec):
    swap: int | None = None


class Tracing(Model):
    rate: float = 0.5


class LaterSpec(SandboxSpec):
    """A spec of a later release: new fields with defaults, also in a nested model."""

    hostname: str | None = None
    tracing: Tracing = Tracing()
    resources: LaterResources = LaterResources()


@pytest.mark.parametrize("fields", [{"image": "demo:1"}, FULL], ids=["minimal", "full"])
def test_a_new_default_field_does_not_change_the_hash(fields):
    later = LaterSpec.model_validate(fields)
    assert hashed(later) == hashed(SandboxSpec.model_validate(fields))
    assert hashed(later.model_copy(update={"hostname": "x"})) != hashed(later)


def test_hashes_are_compared_within_their_version_only():
    assert same_spec(HASH, HASH)
    assert not same_spec("1:old", HASH)
    assert same_spec("9:of a later release", HASH)
    assert HASH.partition(":")[0] == HASH_VERSION


def test_the_environment_of_a_sandbox():
    wanted = desired(env={"LLM": "small"})
    assert environment(wanted, IDENTITY, AROUND, {"TOKEN": "t"}) == {
        "OH_SESSION_API_KEYS_0": "secret-key",
        "OH_WEBHOOKS_0_BASE_URL": "http://host:8/{id}",
        "HTTP": "8000",
        "TOKEN": "t",
        "LLM": "small",
    }


def test_env_overrides_env_file_and_both_override_ports():
    names = ("OH_WEBHOOKS_0_BASE_URL", "HTTP", "BOTH")
    file = dict.fromkeys(names, "file")
    made = environment(desired(env={"BOTH": "env"}), IDENTITY, AROUND, file)
    assert [made[name] for name in names] == ["file", "file", "env"]


def test_the_session_key_is_ours_whatever_a_file_says():
    file = {naming.SESSION_KEY_VARIABLE: "guessed"}
    made = environment(desired(), IDENTITY, AROUND, file)
    assert made[naming.SESSION_KEY_VARIABLE] == "secret-key"


def test_without_a_webhook_there_is_no_variable():
    instance_config = replace(AROUND, webhook_url=None)
    assert naming.WEBHOOK_VARIABLE not in environment(desired(), IDENTITY, instance_config, {})


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("bridge", {8000: 30000}), ("agents", {8000: 30000}), ("host", {}), ("none", {})],
)
def test_ports_are_published_on_the_sandboxs_own_network(mode, expected):
    assert published(spec(network={"mode": mode}), IDENTITY) == expected


def test_labels_name_the_owner_and_the_spec():
    made = container_config(desired(), NAME, AROUND, {}, volume=VOLUME, nonce="n1")
    assert made.labels == {
        "io.sandbox-reconciler.instance": "default",
        "io.sandbox-reconciler.owner": "me",
        "io.sandbox-reconciler.sandbox": KEY,
        "io.sandbox-reconciler.container": NAME,
        "io.sandbox-reconciler.nonce": "n1",
        "io.sandbox-reconciler.retain": "",
        "io.sandbox-reconciler.spec": "demo",
        "io.sandbox-reconciler.spec-hash": HASH,
    }
    assert (made.name, made.volume, made.ports) == (NAME, VOLUME, {8000: 30000})
    assert made.publish_address == "127.0.0.1"


def test_a_container_config_prints_no_secret():
    shown = repr(
        container_config(desired(), NAME, AROUND, {"TOKEN": "hush"}, volume=None, nonce="n")
    )
    assert "hush" not in shown
    assert "secret-key" not in shown
    assert "secret-key" not in repr(desired())
    assert "hush" not in repr(Identity("hush"))


@pytest.mark.parametrize(
    ("identity", "leased"),
    [(None, False), (Identity("k", {}), False), (Identity("k", {8000: 30000}), True)],
)
def test_an_identity_is_complete_once_each_port_is_leased(identity, leased):
    assert is_leased(spec(), identity) is leased


@pytest.mark.parametrize(
    ("fields", "hostname"),
    [
        ({}, KEY),
        ({"network": {"mode": "none"}}, KEY),
        ({"network": {"mode": "agents"}}, KEY),
        ({"network": {"mode": "host"}}, None),
        ({"network": {"mode": "container:other"}}, None),
        ({"hostname": "box.example"}, "box.example"),
        ({"hostname": "box", "network": {"mode": "host"}}, "box"),
    ],
)
def test_the_host_name_is_the_sandboxs(fields, hostname):
    assert (
        container_config(desired(**fields), NAME, AROUND, {}, volume=None, nonce="n").hostname
        == hostname
    )
