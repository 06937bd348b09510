"""One daemon for each instance on an engine of this host."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.core.errors import LockedError
from reconciler.store import engine_lock
from reconciler.store.engine_lock import EngineLock

_HOLD = """
import sys
from reconciler.store.engine_lock import EngineLock
with EngineLock(sys.argv[1], "default"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def engine(tmp_path: Path) -> str:
    path = tmp_path / "docker.sock"
    path.touch()
    return str(path)


def test_a_second_daemon_is_refused_with_a_reason(engine: str):
    with EngineLock(engine, "default") as first:
        assert first.trouble == ""
        with pytest.raises(LockedError, match=rf"pid {os.getpid()} .*instance 'default'"):
            EngineLock(engine, "default").__enter__()
    with EngineLock(engine, "default"):
        pass


def test_a_link_to_the_socket_is_the_same_engine(engine: str, tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to(engine)
    with EngineLock(engine, "default"), pytest.raises(LockedError):
        EngineLock(str(link), "default").__enter__()


def test_another_path_of_the_same_socket_is_the_same_engine(engine: str, tmp_path: Path):
    """A hard link is what a bind mount of the socket into a container looks like."""
    other = tmp_path / "container" / "docker.sock"
    other.parent.mkdir()
    other.hardlink_to(engine)
    with EngineLock(engine, "default"), pytest.raises(LockedError):
        EngineLock(str(other), "default").__enter__()


def test_a_restarted_engine_is_the_same_engine(engine: str):
    with EngineLock(engine, "default"):
        Path(engine).unlink()
        with pytest.raises(LockedError):
            EngineLock(engine, "default").__enter__()
        Path(engine).touch()
        with pytest.raises(LockedError):
            EngineLock(engine, "default").__enter__()


def test_a_refused_lock_leaves_nothing_taken(engine: str, tmp_path: Path):
    other = tmp_path / "container" / "docker.sock"
    other.parent.mkdir()
    other.hardlink_to(engine)
    with EngineLock(engine, "default"):
        Path(engine).unlink()
        # It takes the lock for the inode of another file, and is refused that of the entry.
        Path(engine).touch()
        with pytest.raises(LockedError):
            EngineLock(engine, "default").__enter__()
        moved = tmp_path / "moved.sock"
        moved.hardlink_to(engine)
        with EngineLock(str(moved), "default") as free:
            assert free.trouble == ""


def test_an_engine_without_a_folder_is_locked_too(tmp_path: Path):
    engine = str(tmp_path / "not" / "yet" / "docker.sock")
    with EngineLock(engine, "default"), pytest.raises(LockedError):
        EngineLock(engine, "default").__enter__()


def test_another_engine_at_the_same_path_is_free(tmp_path: Path):
    """As in two mount namespaces that share a network namespace."""
    folder = tmp_path / "run"
    folder.mkdir()
    engine = folder / "docker.sock"
    engine.touch()
    with EngineLock(str(engine), "default"):
        folder.rename(tmp_path / "elsewhere")
        folder.mkdir()
        engine.touch()
        with EngineLock(str(engine), "default") as other:
            assert other.trouble == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount namespace")
def test_another_engine_in_another_mount_namespace_is_free(engine: str):
    folder = str(Path(engine).parent)
    script = 'mount -t tmpfs tmpfs "$0" && touch "$1" && exec "$2" -c "$3" "$1"'
    holder = subprocess.Popen(
        [*("unshare", "--mount", "sh", "-c", script), folder, engine, sys.executable, _HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with EngineLock(engine, "default") as here:
        assert here.trouble == ""
    holder.communicate()
    assert holder.returncode == 0


def test_a_holder_of_another_pid_namespace_is_described(engine: str, monkeypatch):
    monkeypatch.setattr(engine_lock, "_holder", lambda _name: engine_lock._Peer(0, 0, 0))
    with (
        EngineLock(engine, "default"),
        pytest.raises(LockedError, match="a process in another container works with instance"),
    ):
        EngineLock(engine, "default").__enter__()


def test_another_instance_or_engine_is_free(engine: str, tmp_path: Path):
    with (
        EngineLock(engine, "default"),
        EngineLock(engine, "other") as other,
        EngineLock(str(tmp_path / "another.sock"), "default") as another,
        EngineLock("http://10.0.0.1:2375", "default") as remote,
    ):
        assert [lock.trouble for lock in (other, another, remote)] == ["", "", ""]


def test_a_kill_frees_the_engine_lock(engine: str):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(LockedError, match=f"pid {holder.pid} "):
        EngineLock(engine, "default").__enter__()
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with EngineLock(engine, "default") as free:
        assert free.trouble == ""


@pytest.mark.parametrize(
    ("mode", "peer", "refused"),
    [
        (0o660, (0, 0, 0), True),
        (0o660, (0, 4242, 4343), False),
        (0o660, (0, 4242, 0), True),
        (0o600, (0, 4242, 0), False),
        (0o666, (0, 4242, 4343), True),
        (0o660, None, False),
    ],
    ids=["root", "stranger", "its group", "its group without rights", "anybody", "silent"],
)
def test_a_holder_without_access_to_the_engine_does_not_count(
    engine: str, mode: int, peer: tuple[int, int, int] | None, monkeypatch, *, refused: bool
):
    if os.geteuid() != 0:
        pytest.skip("the owner of the socket has to be root")
    Path(engine).chmod(mode)
    known = None if peer is None else engine_lock._Peer(*peer)
    monkeypatch.setattr(engine_lock, "_holder", lambda _name: known)
    with EngineLock(engine, "default"):
        second = EngineLock(engine, "default")
        if refused:
            with pytest.raises(LockedError):
                second.__enter__()
        else:
            with second:
                assert "lock" in second.trouble


@pytest.mark.parametrize(("groups", "refused"), [([4444, 4545], True), ([4444], False)])
def test_supplementary_groups_of_a_holder_count(
    engine: str, groups: list[int], monkeypatch, *, refused: bool
):
    if os.geteuid() != 0:
        pytest.skip("the groups of a process have to be set")
    Path(engine).chmod(0o660)
    os.chown(engine, 0, 4545)
    process = subprocess.Popen(["sleep", "60"], extra_groups=groups)
    peer = engine_lock._Peer(process.pid, 4242, 4343)
    monkeypatch.setattr(engine_lock, "_holder", lambda _name: peer)
    try:
        with EngineLock(engine, "default"):
            second = EngineLock(engine, "default")
            if refused:
                with pytest.raises(LockedError, match=f"pid {process.pid} "):
                    second.__enter__()
            else:
                with second:
                    assert "lock" in second.trouble
    finally:
        process.kill()
        process.wait()


def test_a_lock_that_cannot_be_taken_does_not_prevent_a_start(engine: str, monkeypatch):
    def refuse(*_: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with EngineLock(engine, "default") as lock:
        assert "Permission denied" in lock.trouble
