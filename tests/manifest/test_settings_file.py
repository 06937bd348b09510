"""Settings are read as strictly as the desired file: YAML 1.2, all problems, with positions."""

from __future__ import annotations

import os

import pytest

from reconciler.core.errors import SettingsError
from reconciler.manifest.settings_file import load
from reconciler.settings import Settings


def problems(path, text, **flags) -> list[str]:
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path, **flags)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "reconciler.yaml"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("gc_grace: 5m\ngc_grace: 1h\n", 's:2:1: "gc_grace" is already given in line 1'),
        ("worker: 8\n", 's:1:1: no such setting: "worker": did you mean "workers"?'),
        ("\nworkers: many\n", "s:2:10: must be a whole number"),
        ("workers: 0\n", "s:1:10: must be at least 1"),
        ("gc_grace: soon\n", "s:1:11: "),
        ("log_format: jsn\n", "s:1:13: must be one of auto, json, console, journal: did you mean"),
        ("mounts: [{host_path: /a}]\n", 's:1:10: the key "container_path" is missing'),
        ("workers: !!int x\n", "s:1:10: !!int: must be a whole number"),
        ("\tworkers: 8\n", "s:1:1: a tab is used for indentation: use spaces"),
        ("<<: {workers: 1}\n", 's:1:1: the merge key "<<" is not part of YAML 1.2'),
        ("- workers\n", 's:1:1: must hold settings as "name: value" lines'),
        ("workers: [\n", "s:2:1: "),
        ("disk_min_free: 2g\ndisk_resume_free: 1g\n", "s:2:19: disk_resume_free: must not be"),
    ],
)
def test_each_problem_has_its_position(path, text, line):
    first, *others = problems(path, text)
    assert first.replace("reconciler.yaml", "s").startswith(line)
    assert not others


def test_all_problems_are_reported_at_once(path, monkeypatch):
    monkeypatch.setenv("RECONCILER_PORT_RANGE", "9")
    found = problems(path, "workers: 0\nwerkers: 3\nhost_port: many\n", gc_grace="never")
    assert sorted(line.partition(": ")[0] for line in found) == [
        "--gc-grace",
        "RECONCILER_PORT_RANGE",
        "reconciler.yaml:1:10",
        "reconciler.yaml:2:1",
        "reconciler.yaml:3:12",
    ]


def test_scalars_follow_yaml_1_2(path):
    path.write_text("host_port: 0100\ninstance: no\n")
    settings = load(path)
    assert (settings.host_port, settings.instance) == (100, "no")


def test_unknown_variables_are_errors(path, monkeypatch):
    monkeypatch.setenv("RECONCILER_LOG_LEVLE", "debug")
    monkeypatch.setenv("RECONCILER_SOMETHING_ELSE_ENTIRELY", "1")
    monkeypatch.setenv("reconciler_werkers", "1")
    monkeypatch.setenv("RECONCILER_MOUNTS__0", "{}")
    assert sorted(problems(path, "worker: 8\n"))[:4] == [
        "RECONCILER_LOG_LEVLE: no such setting: did you mean RECONCILER_LOG_LEVEL?",
        "RECONCILER_MOUNTS__0: no such setting: did you mean RECONCILER_MOUNTS?",
        "RECONCILER_SOMETHING_ELSE_ENTIRELY: no such setting: unset it",
        'reconciler.yaml:1:1: no such setting: "worker": did you mean "workers"?',
    ]


def test_variables_of_the_tests_are_ignored(path, monkeypatch):
    path.write_text("workers: 3\n")
    monkeypatch.setenv("RECONCILER_TORTURE_ROUNDS", "200")
    monkeypatch.setenv("RECONCILER_TEST_DOCKER_HOST", "unix:///x")
    monkeypatch.setenv("RECONCILER_CONFIG", str(path))
    assert load().workers == 3


def test_flags_override_variables_and_variables_the_file(path, monkeypatch):
    path.write_text("workers: 3\ninstance: a\nhost_port: 1\nport_range: 1-2\n")
    monkeypatch.setenv("RECONCILER_INSTANCE", "b")
    monkeypatch.setenv("reconciler_host_port", "2")
    monkeypatch.setenv("RECONCILER_PORT_RANGE", "3-4")
    settings = load(path, instance="c", port_range=None)
    assert (settings.workers, settings.instance, settings.host_port) == (3, "c", 2)
    assert settings.port_range == (3, 4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PINNED_IMAGES", "a:1", "must be a list in JSON, such as [] or [...]"),
        ("PINNED_IMAGES", "[1]", 'must be a string: write it in quotes: "1"'),
        ("MOUNTS", '[{"host_path": "/a"}]', 'the key "container_path" is missing'),
        ("MOUNTS", "{}", 'must be a list: "- item" lines, or [item, item]'),
        ("WORKERS", "0", "must be at least 1"),
        ("LOG_LEVEL", "dbug", "must be one of debug, info, warning, error: did you mean"),
    ],
)
def test_bad_variable_is_reported_by_its_name(path, monkeypatch, name, value, message):
    monkeypatch.setenv(f"RECONCILER_{name}", value)
    (problem,) = problems(path, "")
    assert problem.startswith(f"RECONCILER_{name}: {message}")


def test_list_in_a_variable_is_json(monkeypatch):
    monkeypatch.setenv("RECONCILER_PINNED_IMAGES", '["a:1", "b:2"]')
    assert load().pinned_images == ("a:1", "b:2")


def test_missing_file_is_an_error(path):
    with pytest.raises(SettingsError, match="no such file"):
        load(path)


def test_empty_file_sets_nothing(path):
    path.write_text("# nothing\n")
    assert load(path).workers == Settings.model_fields["workers"].default


# --- what root reads from a working directory ---


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A working directory with both files that only root can change."""
    if os.geteuid() != 0:
        pytest.fail("this test changes owners: run it as root")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    for name in ("reconciler.yaml", "desired.yaml"):
        (tmp_path / "config" / name).write_text("")
    for path in (tmp_path, tmp_path / "config", *(tmp_path / "config").iterdir()):
        path.chmod(0o755)
    return tmp_path


def test_root_reads_its_own_working_directory(directory):
    settings = load()
    assert str(settings.desired) == "config/desired.yaml"


@pytest.mark.parametrize("name", ["config/reconciler.yaml", "config/desired.yaml", "config", "."])
@pytest.mark.parametrize("foreign", ["owner", "group", "mode"])
def test_root_refuses_a_directory_that_others_may_change(directory, name, foreign):
    path = directory / name
    match foreign:
        case "owner":
            os.chown(path, 65534, 0)
        case "group":
            os.chown(path, 0, 65534)
            path.chmod(0o775)
        case _:
            path.chmod(0o777)
    with pytest.raises(SettingsError, match="root does not read it from this working directory"):
        load()


def test_root_refuses_a_link_that_another_user_made(directory):
    link = directory / "config" / "desired.yaml"
    link.unlink()
    link.symlink_to("/etc/hostname")
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(SettingsError, match="root does not read it from this working directory"):
        load()


def test_named_file_is_read_from_anywhere(directory):
    os.chown(directory, 65534, 0)
    desired = directory / "config" / "desired.yaml"
    assert load(directory / "config" / "reconciler.yaml", desired=desired).desired == desired
