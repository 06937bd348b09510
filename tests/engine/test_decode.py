import base64
import json
from typing import Any

import pytest

from reconciler.core.errors import (
    Busy,
    EngineError,
    EngineUnavailable,
    ImageNotFound,
    NameTaken,
    NotFound,
    PortTaken,
    PullFailed,
    Refused,
    Unstartable,
)
from reconciler.core.observed import Check, CheckState, Phase
from reconciler.core.spec import SandboxSpec
from reconciler.engine.docker import chown, decode, errors
from reconciler.engine.docker.create import create_body
from reconciler.engine.docker.pull import Pull, registry_of, split_reference
from reconciler.engine.docker.stream import Frames, Lines
from reconciler.engine.protocol import EventKind, PullProgress
from tests.engine.answers import INFO, VERSION
from tests.engine.worlds import FakeWorld, blueprint

LABELS = {
    "io.sandbox-reconciler.instance": "mine",
    "io.sandbox-reconciler.sandbox": "alice",
    "io.sandbox-reconciler.spec": "agent",
    "io.sandbox-reconciler.spec-hash": "1:abc",
}


def inspected(**changes: Any) -> dict[str, Any]:
    """The inspection of a container that was killed for its memory."""
    answer = {
        "Id": "a" * 64,
        "Name": "/oh-agent-server-alice",
        "Created": "2026-01-02T03:04:05.123456789Z",
        "Image": "sha256:" + "b" * 64,
        "State": {
            "Status": "exited",
            "ExitCode": 137,
            "OOMKilled": True,
            "Error": "x" * 1000,
            "StartedAt": "2026-01-02T03:04:06.5Z",
            "FinishedAt": "2026-01-02T04:04:06.5+01:00",
        },
        "Config": {
            "Image": "agent:1",
            "Labels": LABELS,
            "Env": ["PATH=/bin", "OH_SESSION_API_KEYS_0=se=cret", "ODD"],
        },
        "HostConfig": {
            "PortBindings": {
                "8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "30000"}],
                "8001/tcp": [{"HostIp": "", "HostPort": ""}],
                "8002/udp": [{"HostIp": "", "HostPort": "30002"}],
                "8003/tcp": None,
            },
        },
        "Mounts": [
            {"Type": "bind", "Source": "/srv", "Destination": "/srv"},
            {"Type": "volume", "Name": "c" * 64},
            {"Type": "volume", "Name": "openhands-workspace-oh-agent-server-alice"},
        ],
    }
    return {**answer, **changes}


def test_a_container_is_decoded() -> None:
    seen = decode.container(inspected(), "mine")
    assert seen is not None
    assert (seen.name, seen.sandbox, seen.spec) == ("oh-agent-server-alice", "alice", "agent")
    assert (seen.phase, seen.exit_code, seen.oom_killed) == (Phase.EXITED, 137, True)
    assert seen.created_at == pytest.approx(1767323045.123456, abs=1e-5)
    assert seen.started_at == seen.finished_at == 1767323046.5
    assert seen.ports == {8000: 30000}
    assert seen.volumes == {"openhands-workspace-oh-agent-server-alice"}
    assert seen.session_key == "se=cret"
    assert "se=cret" not in repr(seen)
    assert seen.stop_timeout == 10.0
    assert len(seen.error) == 256


@pytest.mark.parametrize("labels", [None, {}, {"io.sandbox-reconciler.instance": "other"}])
def test_a_foreign_container_is_none(labels: Any) -> None:
    config = {**inspected()["Config"], "Labels": labels}
    assert decode.container(inspected(Config=config), "mine") is None


@pytest.mark.parametrize("missing", ["Id", "Name", "State", "Config", "HostConfig", "Mounts"])
def test_a_container_with_a_missing_field_is_an_error(missing: str) -> None:
    answer = inspected()
    del answer[missing]
    with pytest.raises(EngineError, match="cannot be decoded"), errors.decode_errors("it"):
        decode.container(answer, "mine")


def test_an_unknown_phase_is_an_error() -> None:
    state = {**inspected()["State"], "Status": "melting"}
    with pytest.raises(EngineError), errors.decode_errors("it"):
        decode.container(inspected(State=state), "mine")


@pytest.mark.parametrize("phase", ["created", "removing", "dead", "restarting", "paused"])
def test_every_phase_is_known(phase: str) -> None:
    state = {**inspected()["State"], "Status": phase, "StartedAt": "0001-01-01T00:00:00Z"}
    seen = decode.container(inspected(State=state), "mine")
    assert seen is not None
    assert (seen.phase, seen.started_at) == (phase, None)


@pytest.mark.parametrize(
    ("names", "name"),
    [(["/a/link", "/own"], "own"), ([], "a" * 12), (None, "a" * 12)],
)
def test_a_row_ignores_legacy_link_names(names: Any, name: str) -> None:
    row = {"Id": "a" * 64, "Names": names, "Labels": LABELS, "State": "running"}
    assert decode.summary(row).name == name


def test_a_partial_list_of_volumes_is_an_error() -> None:
    with pytest.raises(ValueError, match="partial"):
        decode.volume_rows({"Volumes": [], "Warnings": ["a driver does not answer"]})
    with pytest.raises(KeyError):
        decode.volume_rows({"Warnings": None})
    assert decode.volume_rows({"Volumes": None, "Warnings": None}) == []


def event(**changes: Any) -> bytes:
    actor = {"ID": "a" * 64, "Attributes": {**LABELS, "name": "oh-agent-server-alice"}}
    whole = {"Type": "container", "Action": "die", "Actor": actor, "timeNano": 1_500_000_000}
    return json.dumps({**whole, **changes}).encode()


def test_an_event_is_decoded() -> None:
    heard = decode.event(event(), "mine")
    assert heard is not None
    assert (heard.kind, heard.what, heard.sandbox) == (EventKind.CONTAINER, "die", "alice")
    assert (heard.id, heard.at) == ("a" * 64, 1.5)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        event(Type="network"),
        event(Actor={"ID": "a", "Attributes": {}}),
        event(Actor=None),
        event(timeNano="soon"),
        event(Type="volume", Actor={"ID": "other", "Attributes": {"driver": "local"}}),
    ],
)
def test_foreign_event_lines_are_ignored(line: bytes) -> None:
    assert decode.event(line, "mine") is None


def test_a_workspace_event_has_no_sandbox() -> None:
    actor = {"ID": "openhands-workspace-x", "Attributes": {"driver": "local"}}
    heard = decode.event(event(Type="volume", Action="destroy", Actor=actor), "mine")
    assert heard is not None
    assert (heard.kind, heard.sandbox) == (EventKind.VOLUME, "")


# --- requests


def host_config(**spec: Any) -> dict[str, Any]:
    return dict(create_body(blueprint(FakeWorld(), "alice", **spec))["HostConfig"])


@pytest.mark.parametrize("mode", ["host", "none", "container:other"])
def test_networks_without_a_hosts_file_get_no_extra_hosts(mode: str) -> None:
    assert "ExtraHosts" not in host_config(network={"mode": mode})


@pytest.mark.parametrize(
    ("gpus", "request_"),
    [("all", {"Count": -1}), (2, {"Count": 2}), (["GPU-1"], {"DeviceIDs": ["GPU-1"]})],
)
def test_gpus(gpus: Any, request_: dict[str, Any]) -> None:
    (asked,) = host_config(resources={"gpus": gpus})["DeviceRequests"]
    assert asked == {"Capabilities": [["gpu"]], **request_}


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("/dev/a", ("/dev/a", "/dev/a", "rwm")),
        ("/dev/a:/dev/b", ("/dev/a", "/dev/b", "rwm")),
        ("/dev/a:r", ("/dev/a", "/dev/a", "r")),
        ("/dev/a:/dev/b:rw", ("/dev/a", "/dev/b", "rw")),
    ],
)
def test_devices(device: str, expected: tuple[str, ...]) -> None:
    (made,) = host_config(resources={"devices": [device]})["Devices"]
    assert tuple(made.values()) == expected


ROTATION = {"max-size": str(10 << 20), "max-file": "3"}


@pytest.mark.parametrize(
    ("log", "engine_driver", "expected"),
    [
        ({}, "json-file", {"Type": "json-file", "Config": ROTATION}),
        ({}, "journald", None),
        ({}, "local", None),
        ({"max_size": 0}, "json-file", {"Type": "json-file", "Config": {}}),
        ({"driver": "json-file"}, "journald", {"Type": "json-file", "Config": ROTATION}),
        ({"driver": "local"}, "json-file", {"Type": "local", "Config": ROTATION}),
        ({"driver": "none"}, "json-file", {"Type": "none", "Config": {}}),
        (
            {"driver": "journald", "options": {"tag": "x"}},
            "json-file",
            {"Type": "journald", "Config": {"tag": "x"}},
        ),
        ({"options": {"tag": "x"}}, "journald", {"Type": "journald", "Config": {"tag": "x"}}),
        (
            {"options": {"max-file": "9"}},
            "json-file",
            {"Type": "json-file", "Config": {**ROTATION, "max-file": "9"}},
        ),
    ],
)
def test_the_log_driver(log: Any, engine_driver: str, expected: Any) -> None:
    body = create_body(blueprint(FakeWorld(), "alice", log=log), engine_driver)
    assert body["HostConfig"].get("LogConfig") == expected


def test_an_engine_names_its_log_driver() -> None:
    assert decode.log_driver({"LoggingDriver": "journald"}) == "journald"
    assert decode.log_driver({}) == ""


def test_an_empty_spec_sets_no_options() -> None:
    body = create_body(blueprint(FakeWorld(), "alice"))
    assert {"Cmd", "User", "WorkingDir"}.isdisjoint(body)
    assert {"Memory", "NanoCpus", "Devices", "Ulimits", "CapAdd"}.isdisjoint(body["HostConfig"])
    assert body["HostConfig"]["Mounts"] == []


def test_a_command_may_be_empty() -> None:
    assert create_body(blueprint(FakeWorld(), "alice", command=[]))["Cmd"] == []


def test_the_stop_timeout_is_whole_seconds() -> None:
    assert create_body(blueprint(FakeWorld(), "alice", stop_timeout="1500ms"))["StopTimeout"] == 2


def test_an_implicit_workspace_volume_gets_our_labels() -> None:
    (mount,) = host_config(workspace={"path": "/w"})["Mounts"]
    names = ["instance", "owner", "sandbox", "container", "nonce", "spec", "spec-hash", "retain"]
    assert mount["VolumeOptions"]["Labels"].keys() == {
        f"io.sandbox-reconciler.{name}" for name in names
    }


# --- refusals

HEX = "0123456789abcdef" * 4
ON_START = errors.on_start_of("me")


@pytest.mark.parametrize(
    ("say", "status", "text", "kind"),
    [
        (errors.common, 900, "Cannot connect", EngineUnavailable),
        (errors.common, 503, "no", EngineUnavailable),
        (errors.common, 400, "client version 1.41 is too old", EngineUnavailable),
        (errors.common, 404, "No such container: x", NotFound),
        (errors.common, 409, "removal in progress", Busy),
        (errors.common, 500, "a bug", EngineError),
        (errors.on_create, 404, "No such image: x:1", ImageNotFound),
        (errors.on_create, 500, "no such image: x:1", ImageNotFound),
        (errors.on_create, 404, "network x not found", Refused),
        (errors.on_create, 409, 'Conflict. The container name "/x" is already in use', NameTaken),
        (errors.on_create, 500, "bind source path does not exist: /x", Refused),
        (errors.on_create, 500, "write /x: no space left on device", EngineError),
        (
            ON_START,
            500,
            "Bind for 127.0.0.1:80 failed: port is already allocated",
            PortTaken,
        ),
        (ON_START, 404, "No such container: me", NotFound),
        (ON_START, 404, f"No such container: {HEX}", Unstartable),
        (ON_START, 404, "No such container: sidecar", Refused),
        (ON_START, 404, f"joining network namespace: No such container: {HEX}", Unstartable),
        (ON_START, 404, f"network {HEX} not found", Unstartable),
        (ON_START, 409, f"cannot join network of a non running container: {HEX}", Refused),
        (ON_START, 404, "network x not found", Refused),
        (ON_START, 409, "cannot start a paused container", Busy),
        (ON_START, 500, "OCI runtime create failed: a bad thing", Refused),
        (ON_START, 500, "OCI runtime: fork: resource temporarily unavailable", EngineError),
        (ON_START, 500, "bridge docker0 failed: could not find bridge", EngineError),
        (ON_START, 500, "OCI runtime create failed: container with id exists: x", Unstartable),
        (ON_START, 500, f"failed to create task: task {HEX}: already exists", Unstartable),
        (ON_START, 409, f"container {HEX}: already exists: unknown", Unstartable),
        (ON_START, 500, f"start shim: mkdir /run/containerd/{HEX}: file exists", Unstartable),
        (ON_START, 500, "OCI runtime: mkdir /rootfs/file/dir: file exists", Refused),
        (errors.on_rename, 409, "name is already in use", NameTaken),
        (errors.on_pull_of("x"), 404, "pull access denied", PullFailed),
        (errors.on_pull_of("x"), 900, "Cannot connect", EngineUnavailable),
    ],
)
def test_refusals_are_translated(
    say: errors.Translator, status: int, text: str, kind: type[EngineError]
) -> None:
    assert type(say(status, text)) is kind


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("Bind for 127.0.0.1:33333 failed: port is already allocated", 33333),
        ("listen tcp4 127.0.0.1:33334: bind: address already in use", 33334),
        ("failed to bind host port for 0.0.0.0:81:172.17.0.2:80/tcp: address already in use", 81),
        ("failed to bind host port 127.0.0.1:82/tcp: address already in use", 82),
        ("failed to bind host port for [::]:83:[fe80::1]:80/tcp: address already in use", 83),
        ("port is already allocated", None),
    ],
)
def test_the_taken_port_is_parsed(text: str, port: int | None) -> None:
    error = ON_START(500, text)
    assert isinstance(error, PortTaken)
    assert error.port == port


def test_a_long_refusal_keeps_its_beginning_and_end() -> None:
    said = str(errors.common(500, f"what was tried {'x ' * 9999} No chain by that name"))
    assert len(said) == 256
    assert said.startswith("what was tried")
    assert said.endswith("No chain by that name")


def test_ids_are_shortened() -> None:
    said = str(errors.common(500, f"endpoint ({'0123456789ab' * 6}), id {'ab' * 32}"))
    assert said == f"endpoint ({'0123456789ab' * 6}), id {'ab' * 6}"


# --- streams


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_do_not_depend_on_chunks(size: int) -> None:
    text, lines, found = b"one\r\n\nthree and more\nlast", Lines(8), []
    for at in range(0, len(text), size):
        found += lines.feed(text[at : at + size])
    assert [*found, *lines.end()] == [b"one", b"", b"three an", b"last"]


@pytest.mark.parametrize("size", [1, 5, 9, 1000])
def test_frames_do_not_depend_on_chunks(size: int) -> None:
    def frame(output: int, data: bytes) -> bytes:
        return bytes([output, 0, 0, 0]) + len(data).to_bytes(4, "big") + data

    stream = (
        frame(1, b"on") + frame(2, b"err\n") + frame(1, b"") + frame(1, b"e\nla") + frame(2, b"x")
    )
    frames, found = Frames(8), []
    for at in range(0, len(stream), size):
        found += frames.feed(stream[at : at + size])
    assert [*found, *frames.end()] == [b"err", b"one", b"la", b"x"]


# --- images


@pytest.mark.parametrize(
    ("image", "reference", "registry"),
    [
        ("busybox", ("busybox", "latest"), ""),
        ("busybox:1", ("busybox", "1"), ""),
        ("owner/name", ("owner/name", "latest"), ""),
        ("localhost/name:1", ("localhost/name", "1"), "localhost"),
        ("host:5000/name", ("host:5000/name", "latest"), "host:5000"),
        ("host:5000/a/name:1", ("host:5000/a/name", "1"), "host:5000"),
        ("host.example/name@sha256:ab", ("host.example/name", "sha256:ab"), "host.example"),
        ("name:1@sha256:ab", ("name", "sha256:ab"), ""),
    ],
)
def test_references_are_split(image: str, reference: tuple[str, str], registry: str) -> None:
    assert (split_reference(image), registry_of(image)) == (reference, registry)


@pytest.mark.parametrize("image", ["sha256:" + "a" * 64, "a" * 64])
def test_an_id_cannot_be_pulled(image: str) -> None:
    with pytest.raises(PullFailed, match="is an image id"):
        split_reference(image)


def test_progress_is_summed_over_layers() -> None:
    pull = Pull("x")
    lines = [
        {"status": "Pulling from x", "id": "latest"},
        {"status": "Already exists", "id": "a"},
        {"status": "Pulling fs layer", "id": "b"},
        {"status": "Downloading", "id": "b", "progressDetail": {"current": 5, "total": 10}},
    ]
    for line in lines:
        now = pull.feed(json.dumps(line).encode())
    assert now == PullProgress(layers_done=1, layers=2, bytes_done=5, bytes_total=10)
    pull.feed(b'{"status": "Download complete", "id": "b"}')
    assert pull.feed(b"garbage").bytes_done == 10
    assert pull.feed(b'{"status": "Pull complete", "id": "b"}').layers_done == 2


def test_an_error_in_the_stream_ends_the_pull() -> None:
    with pytest.raises(PullFailed, match="x: denied"):
        Pull("x").feed(b'{"errorDetail": {"message": "denied"}, "error": "denied"}')


# --- owners


@pytest.mark.parametrize(
    ("user", "owner"),
    [
        ("agent", (10, 20)),
        ("agent:staff", (10, 50)),
        ("agent:7", (10, 7)),
        ("10", (10, 20)),
        ("99", (99, 0)),
        ("99:staff", (99, 50)),
    ],
)
def test_users_are_resolved(user: str, owner: tuple[int, int]) -> None:
    passwd, group = "# odd\nroot:x:0:0::/:\nagent:x:10:20::/:\n", "staff:x:50:\n"
    assert chown.resolve(user, passwd, group) == chown.Owner(*owner)


@pytest.mark.parametrize("user", ["nobody", "agent:nobody"])
def test_missing_users_are_refused(user: str) -> None:
    with pytest.raises(Refused, match="is not in the image"):
        chown.resolve(user, "agent:x:10:20::/:", "")


def mount(path: str, mode: str) -> dict[str, str]:
    return {"host_path": "/srv", "container_path": path, "mode": mode}


def test_the_chown_archive_has_the_folders_below() -> None:
    archive = chown.chown_archive("b", {"": 0o2750, "c": 0o700}, chown.Owner(7, 8), 1.0)
    assert archive.startswith(b"b/\0")
    assert b"b/c/\0" in archive
    assert chown.head(archive).owner == chown.Owner(7, 8)


@pytest.mark.parametrize(
    ("path", "more", "expected"),
    [
        ("/workspace", {}, True),
        ("/workspace", {"security": {"read_only": True}}, False),
        ("/data/a/workspace/", {"mounts": [mount("/data", "ro")]}, False),
        ("/data/a/workspace", {"mounts": [mount("/data", "rw")]}, True),
        ("/data", {"mounts": [mount("/data/models", "ro")]}, True),
    ],
)
def test_an_archive_needs_a_writable_parent(
    path: str, more: dict[str, Any], *, expected: bool
) -> None:
    assert chown.can_write_beside(path, SandboxSpec.model_validate({"image": "x", **more})) is (
        expected
    )


@pytest.mark.parametrize(
    ("working_dir", "folders"),
    [
        ("/workspace/a/b/", ["a", "a/b"]),
        ("/workspace", []),
        ("/workspace2/a", []),
        ("/", []),
        ("", []),
    ],
)
def test_folders_between_workspace_and_working_dir(working_dir: str, folders: list[str]) -> None:
    assert chown.folders_between("/workspace/", working_dir) == folders


def test_go_file_modes_are_converted() -> None:
    assert chown.place(header(1 << 31 | 1 << 22 | 1 << 20 | 0o750, "")) == chown.Place(0o3750, "")


def test_only_links_have_a_target() -> None:
    assert chown.place(header(1 << 27 | 0o777, "/a")).link == "/a"
    # Podman 5.8's header of a folder.
    assert chown.place(header(1 << 31 | 0o755, "/workspace")).link == ""


def header(mode: int, target: str) -> str:
    """The engine's header about a path."""
    stat = {"mode": mode, "linkTarget": target}
    return base64.b64encode(json.dumps(stat).encode()).decode()


@pytest.mark.parametrize("archive", [b"", b"x" * 5000, b"\0" * 10240])
def test_a_broken_archive_is_a_value_error(archive: bytes) -> None:
    with pytest.raises(ValueError, match="archive"):
        chown.head(archive)


@pytest.mark.parametrize(
    "date", ["0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "", "never", None, 7, [], "9" * 5000]
)
def test_a_broken_date_does_not_break_the_container(date):
    state = {**inspected()["State"], "StartedAt": date, "FinishedAt": date}
    seen = decode.container({**inspected(), "State": state, "Created": date}, "mine")
    assert (seen.created_at, seen.started_at, seen.finished_at) == (0.0, None, None)


@pytest.mark.parametrize(
    ("health", "check"),
    [
        (None, None),
        ({"Status": "none", "Log": None}, None),
        ({"Status": "", "FailingStreak": 0, "Log": None}, None),
        ({"Status": "stopped", "Log": None}, None),
        ({"Status": "starting", "Log": []}, Check(CheckState.STARTING)),
        (
            {"Status": "unhealthy", "Log": [{"End": "2026"}, {"End": "2027", "Output": "\x1b"}]},
            Check(CheckState.UNHEALTHY, "2027"),
        ),
    ],
)
def test_a_healthcheck_is_decoded(health: Any, check: Check | None) -> None:
    state = {**inspected()["State"], "Health": health}
    seen = decode.container(inspected(State=state), "mine")
    assert seen
    assert seen.check == check


@pytest.mark.parametrize(
    ("pools", "gateway"),
    [
        (None, ""),
        ([], ""),
        ([{"Subnet": "172.17.0.0/16"}], "172.17.0.1"),
        ([{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.9"}], "172.17.0.9"),
        ([{"Subnet": "", "Gateway": ""}, {"Subnet": "fd00:1::/64"}], "fd00:1::1"),
    ],
)
def test_the_bridge_gateway_is_decoded(pools: Any, gateway: str) -> None:
    assert decode.gateway({"IPAM": {"Config": pools}}) == gateway


def test_the_state_is_cut_from_health_events() -> None:
    event = {
        "Type": "container",
        "Action": "health_status: unhealthy",
        "Actor": {"ID": "a" * 64, "Attributes": {**LABELS, "name": "x"}},
        "timeNano": 1,
    }
    seen = decode.event(json.dumps(event).encode(), "mine")
    assert seen
    assert seen.what == "health_status"


def test_hostname_and_disabled_healthcheck() -> None:
    made = blueprint(FakeWorld(), "alice", hostname="box", healthcheck="none")
    body = create_body(made)
    assert (body["Hostname"], body["Healthcheck"]) == ("box", {"Test": ["NONE"]})
    plain = create_body(blueprint(FakeWorld(), "alice"))
    assert not {"Hostname", "Healthcheck"} & set(plain)


def test_a_rootless_engine_without_cgroups() -> None:
    about = {
        **INFO,
        "SecurityOptions": ["name=seccomp,profile=default", "name=rootless"],
        "CpuCfsQuota": False,
        "MemoryLimit": False,
        "PidsLimit": True,
    }
    seen = decode.info(VERSION, about, api_version="1.41")
    assert (seen.rootless, seen.missing_limits) == (True, ("cpus", "memory"))
    assert decode.info(VERSION, INFO, api_version="1.41").missing_limits == ()


def test_create_warnings_are_decoded() -> None:
    assert decode.warnings({"Warnings": ["a\n b", "c"]}) == ("a b", "c")
    assert decode.warnings({"Warnings": None}) == decode.warnings({}) == ()
