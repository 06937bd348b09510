"""Loading the desired file: records, defaults, errors, and what they hold back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from reconciler.core.errors import Diagnostic, ManifestError
from reconciler.core.spec import DesiredState, MountSpec, PortSpec, ProbeKind
from reconciler.manifest.loader import SpecDefaults, env_file_errors, load
from tests.manifest.manifests import HEAD, SPEC, loaded, messages


def test_valid_file(desired):
    found = loaded(
        desired,
        HEAD + "  alice: {spec: web}\n  bob: {spec: web, state: paused, env: {A: no}}\n",
    )
    assert not found.diagnostics
    assert (found.fatal, found.empty, found.held) == (False, False, {})
    alice, bob = found.records["alice"], found.records["bob"]
    assert (alice.state, alice.spec_name, alice.line) == (DesiredState.RUNNING, "web", 5)
    assert alice.spec.ports == (PortSpec(name="A", container_port=80),)
    assert (bob.state, bob.spec.env, bob.file) == (DesiredState.PAUSED, {"A": "no"}, str(desired))


def test_replicas_become_numbered_records(desired):
    found = loaded(
        desired, HEAD + "  pool: {spec: web, replicas: 3}\n  none: {spec: web, replicas: 0}\n"
    )
    assert list(found.records) == ["pool-1", "pool-2", "pool-3"]


def test_mappings_merge_by_key_and_lists_are_replaced(desired):
    found = loaded(
        desired,
        "version: 1\nspecs:\n  s:\n    image: i\n    env: {A: a, B: b}\n    command: [x, y]\n"
        "    workspace: {path: /w, retain: 1h}\n    resources: {cpus: 2, memory: 1g}\n"
        "sandboxes:\n  a: {spec: s, env: {B: c}, command: [z], workspace: {retain: forever},"
        " resources: {memory: null}}\n",
    )
    spec = found.records["a"].spec
    assert spec.env == {"A": "a", "B": "c"}
    assert spec.command == ("z",)
    assert spec.workspace is not None
    assert (spec.workspace.path, spec.workspace.retain) == ("/w", "forever")
    assert (spec.resources.cpus, spec.resources.memory) == (2.0, None)


def test_override_can_complete_a_changed_mapping(desired):
    found = loaded(
        desired,
        HEAD + "  a: {spec: web, health: {kind: exec, command: [t]}}\n"
        "  b: {spec: web, health: {kind: tcp}}\n",
    )
    assert messages(found) == []
    assert found.records["a"].spec.health.kind is ProbeKind.EXEC


DEFAULTS = SpecDefaults(
    mounts=(MountSpec(host_path="/h", container_path="/c"),),
    exposed_ports=(PortSpec(name="D", container_port=1),),
    health_check_path="/alive",
)


@pytest.mark.parametrize(
    ("spec", "ports", "health"),
    [
        ("", ["D"], "/alive"),
        ("ports: [{name: P, container_port: 2}]", ["P"], "/alive"),
        ("ports: []", [], None),
        ("health: null", ["D"], None),
        ("health: {path: /own}", ["D"], "/own"),
        ("network: {mode: none}", ["D"], None),
    ],
)
def test_defaults_are_the_lowest_layer(desired, spec, ports, health):
    content = f"version: 1\nspecs: {{s: {{image: i, {spec}}}}}\nsandboxes: {{a: {{spec: s}}}}\n"
    found = loaded(desired, content, DEFAULTS).records["a"].spec
    assert [port.name for port in found.ports] == ports
    assert (found.health and found.health.path) == health
    assert [mount.host_path for mount in found.mounts] == ["/h"]


def test_bad_spec_holds_back_only_its_records(desired):
    found = loaded(
        desired,
        "version: 1\nspecs:\n  good: {image: i}\n  bad: {command: [1]}\nsandboxes:\n"
        "  a: {spec: good}\n  b: {spec: bad}\n  c: {spec: bad, imgae: x}\n",
    )
    assert messages(found) == [
        '4:3: the key "image" is missing',
        '4:19: must be a string: write it in quotes: "1"',
        '8:18: unknown key "imgae": did you mean "image"?',
    ]
    assert list(found.records) == ["a"]
    assert set(found.held) == {"b", "c"}


def test_colliding_replicas_hold_back_both_records(desired):
    found = loaded(
        desired, HEAD + "  p: {spec: web, replicas: 2}\n  p-2: {spec: web}\n  b: {spec: web}\n"
    )
    assert messages(found) == [f'6:3: "p-2" is already declared by "p" in {desired}:5']
    assert set(found.held) == {"p", "p-2"}
    assert list(found.records) == ["b"]


@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n", "---\n", "\ufeff", "~\n"])
def test_empty_file_is_empty_and_not_fatal(desired, content):
    found = loaded(desired, content)
    assert (found.empty, found.fatal) == (True, False)
    assert "the file is empty" in messages(found)[0]


@pytest.mark.parametrize(
    "content", ["version: 1\n", "version: 1\nsandboxes:\n", "version: 1\nspecs:\nsandboxes: {}\n"]
)
def test_file_without_sandboxes_is_not_empty(desired, content):
    found = loaded(desired, content)
    assert (found.empty, found.fatal, found.diagnostics) == (False, False, ())


def test_file_of_bad_records_is_not_empty(desired):
    assert not loaded(desired, HEAD + "  a: {spec: no}\n").empty


def test_crlf_and_byte_order_mark_are_accepted(desired):
    text = (HEAD + "  a: {spec: web, state: x}\n").replace("\n", "\r\n")
    found = loaded(desired, b"\xef\xbb\xbf" + text.encode())
    assert messages(found) == ["5:25: must be one of running, paused, stopped"]


def test_missing_file_and_dangling_link(tmp_path):
    gone = load(tmp_path / "no" / "desired.yaml")
    assert (gone.empty, gone.fatal) == (True, False)
    assert "no such file" in gone.diagnostics[0].message
    link = tmp_path / "link.yaml"
    link.symlink_to("nowhere")
    assert "a link to nothing" in load(link).diagnostics[0].message


def test_pipes_and_devices_are_refused(tmp_path):
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null"), Path("/dev/zero")):
        found = load(path)
        assert found.fatal
        assert found.diagnostics[0].message == "not a regular file"


@contextlib.contextmanager
def as_nobody():
    """Read as another user, since root may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("target", ["folder", "file"])
def test_missing_permission_is_named(tmp_path, target):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.yaml").write_text(HEAD)
    for above in (tmp_path, *list(tmp_path.parents)[:3]):
        above.chmod(0o755)
    (folder if target == "folder" else folder / "a.yaml").chmod(0)
    with as_nobody():
        found = load(folder)
    folder.chmod(0o755)
    (diagnostic,) = found.diagnostics
    closed = folder if target == "folder" else diagnostic.file
    assert diagnostic.message.startswith("cannot be read: Permission denied; ")
    assert str(closed) in diagnostic.message
    assert found.fatal


# --- folders ---


def test_files_of_a_folder_share_specs_in_name_order(tmp_path):
    (tmp_path / "10-specs.yaml").write_text(SPEC)
    (tmp_path / "20-b.yaml").write_text("version: 1\nsandboxes: {b: {spec: web}}\n")
    (tmp_path / "30-a.yaml").write_text("version: 1\nsandboxes: {a: {spec: web}}\n")
    for name in (".hidden.yaml", ".#30-a.yaml", "#x.yaml", "b.yaml~", "b.yaml.swp", "notes.txt"):
        (tmp_path / name).write_text("}")
    found = load(tmp_path)
    assert not found.diagnostics
    assert list(found.records) == ["b", "a"]


def test_same_name_in_two_files_is_an_error(tmp_path):
    (tmp_path / "a.yaml").write_text(HEAD + "  x: {spec: web}\n")
    (tmp_path / "b.yaml").write_text(HEAD + "  x: {spec: web}\n")
    found = load(tmp_path)
    assert [str(d) for d in found.diagnostics] == [
        f'{tmp_path}/b.yaml:3:3: "web" is already under specs in {tmp_path}/a.yaml:3',
        f'{tmp_path}/b.yaml:5:3: "x" is already under sandboxes in {tmp_path}/a.yaml:5',
    ]
    assert found.fatal


def test_errors_of_all_files_are_reported_at_once(tmp_path):
    (tmp_path / "a.yaml").write_text("version: 1\nx: [\n")
    (tmp_path / "b.yaml").write_text("version: 1\ny: @\n")
    (tmp_path / "c.yaml").write_text(HEAD + "  a: {spec: no, state: no, init: 3}\n")
    found = load(tmp_path)
    assert [Path(d.file).name for d in found.diagnostics] == [
        "a.yaml",
        "b.yaml",
        "c.yaml",
        "c.yaml",
    ]
    assert found.fatal


def test_empty_file_in_a_folder_is_empty(tmp_path):
    (tmp_path / "a.yaml").write_text(HEAD + "  x: {spec: web}\n")
    (tmp_path / "b.yaml").write_text("")
    found = load(tmp_path)
    assert (found.empty, found.fatal, list(found.records)) == (True, False, ["x"])


def test_folder_without_files_is_empty(tmp_path):
    assert (load(tmp_path).empty, load(tmp_path).fatal) == (True, False)


def test_nested_folder_named_like_a_file_is_fatal(tmp_path):
    (tmp_path / "a.yaml").mkdir()
    assert load(tmp_path).fatal


def test_env_file_error_is_at_the_key_that_names_the_file(desired):
    found = loaded(
        desired,
        "version: 1\nspecs:\n  web: {image: i, env_file: /e/x.env}\nsandboxes:\n"
        "  a: {spec: web}\n  b: {spec: web}\n  c: {spec: web, env_file: /e/y.env}\n",
    )
    assert found.env_paths() == {Path("/e/x.env"), Path("/e/y.env")}
    refused = {
        path: ManifestError((Diagnostic(path, 1, 1, "does not exist"),))
        for path in ("/e/x.env", "/e/y.env")
    }
    assert [str(it) for it in env_file_errors(found.records.values(), refused)] == [
        f"{desired}:3:19: env_file /e/x.env:1:1: does not exist",
        f"{desired}:7:18: env_file /e/y.env:1:1: does not exist",
    ]
