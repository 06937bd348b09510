"""What another user of this machine puts in /tmp moves nothing that root does there."""

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from scripts import private
from scripts.engine import PrivateEngine
from tests.harness import engines


def as_nobody(script: str, *arguments: object) -> None:
    subprocess.run(
        ["/bin/sh", "-euc", script, "sh", *map(str, arguments)],
        user="nobody",
        group="nogroup",
        extra_groups=[],
        cwd="/",
        check=True,
    )


@pytest.fixture
def public():
    """A folder like /tmp: everybody may write in it, and nobody may remove what others made."""
    folder = Path(tempfile.mkdtemp(prefix="rclx-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def victim(tmp_path):
    """A file of root's."""
    file = tmp_path / "victim"
    file.write_text("precious")
    return file


def test_a_recorded_folder_of_another_user_is_not_used(public, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(public))
    record = tmp_path / "directory"
    folder = private.remembered_folder(record, "demo-")
    assert private.remembered_folder(record, "demo-") == folder
    folder.rmdir()
    as_nobody('mkdir -m 777 "$1" "$1/engine"', folder)
    other = private.remembered_folder(record, "demo-")
    assert other != folder
    assert (other.stat().st_uid, stat.S_IMODE(other.stat().st_mode)) == (0, 0o700)
    other.rmdir()
    other.symlink_to(folder)
    assert private.recorded_folder(record) is None


@pytest.mark.parametrize("act", ["start", "destroy"])
def test_an_engine_rejects_a_folder_of_another_user(public, victim, act):
    folder = public / "engine"
    as_nobody(
        'mkdir -p -m 777 "$1/containerd/a/b/c"; mkfifo "$1/daemon.json";'
        ' printf victim > "$1/bridge"; printf %s "$2" > "$1/containerd/a/b/c/address";'
        ' printf 1 > "$1/dockerd.pid"',
        folder,
        victim,
    )
    with pytest.raises(RuntimeError, match="belongs to another user"):
        getattr(PrivateEngine(folder), act)()
    assert victim.read_text() == "precious"
    assert not (folder / "containerd.toml").exists()


def test_an_engine_rejects_a_folder_others_can_write(public):
    folder = public / "engine"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(RuntimeError, match="others may write"):
        PrivateEngine(folder).destroy()


def test_recorded_pids_and_bridges_are_checked(tmp_path, victim):
    engine = PrivateEngine(tmp_path / "engine")
    shim = engine.directory / "containerd/a/b/c"
    shim.mkdir(parents=True)
    (shim / "address").write_text(f"unix://{victim}")
    for text in ("victim", "../rclbr1", "rclbr1\n", "rclbr1/..", ""):
        (engine.directory / "bridge").write_text(text)
        assert engine._read_bridge() is None
    for text in ("-1", "0", "1 2", "self"):
        (engine.directory / "dockerd.pid").write_text(text)
        assert engine.pid is None
    engine.destroy()
    assert victim.read_text() == "precious"
    assert not engine.directory.exists()


def test_a_session_keeps_folders_of_other_users(public, monkeypatch):
    monkeypatch.setattr(engines, "_TMP", public)
    monkeypatch.setattr(tempfile, "tempdir", str(public))
    monkeypatch.setenv(engines.FOLDER, "")
    ended = subprocess.Popen(["true"])
    ended.wait()
    as_nobody(
        'mkdir -m 777 "$1" "$1/shared"; printf victim > "$1/shared/bridge"',
        planted := public / f"rcl-{ended.pid}-x",
    )
    own = public / f"rcl-{ended.pid}-y"
    (own / "left").mkdir(parents=True)
    engines.begin_session()
    assert (planted / "shared" / "bridge").exists()
    assert not own.exists()
    folder = Path(os.environ[engines.FOLDER])
    assert (folder.parent, stat.S_IMODE(folder.stat().st_mode)) == (public, 0o700)
    engines.end_session()
    assert not folder.exists()


@pytest.mark.parametrize(
    "plant", ['ln -s "$2" "$1"', 'mkfifo "$1"', 'printf old > "$1"; chmod 666 "$1"']
)
def test_links_pipes_and_foreign_files_are_not_used(public, victim, plant):
    name = public / "note"
    as_nobody(plant, name, victim)
    assert private.read(name) == ""
    private.write(name, "new")
    assert (private.read(name), victim.read_text()) == ("new", "precious")
    status = name.lstat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
