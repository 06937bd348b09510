import fcntl
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconciler.core.errors import LockedError, StoreError
from reconciler.store import lock
from reconciler.store.lock import StateLock, holder
from tests.store.conftest_store import unprivileged

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from reconciler.store.lock import StateLock
with StateLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another(state_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, state_dir],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_with_the_holders_pid(tmp_path: Path) -> None:
    with another(tmp_path) as process:
        with (
            pytest.raises(LockedError, match=f"pid {process.pid}.*stop it first"),
            StateLock(tmp_path),
        ):
            pass
        assert holder(tmp_path) == process.pid


def test_a_kill_frees_the_state_lock(tmp_path: Path) -> None:
    with another(tmp_path) as process:
        process.kill()
        process.wait()
        assert holder(tmp_path) is None
        with StateLock(tmp_path):
            assert holder(tmp_path) == os.getpid()


def test_one_process_can_lock_again_after_release(tmp_path: Path) -> None:
    with StateLock(tmp_path), pytest.raises(LockedError, match=f"pid {os.getpid()}"):
        StateLock(tmp_path).__enter__()
    with StateLock(tmp_path):
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None


def test_the_lock_names_the_holders_socket(tmp_path: Path) -> None:
    with StateLock(tmp_path, Path("/run/control.sock")):
        content = json.loads((tmp_path / lock.FILE).read_text())
    assert content == {"pid": os.getpid(), "socket": "/run/control.sock"}


def test_the_folder_and_the_file_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with StateLock(tmp_path / "state"):
            modes = [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "state").iterdir()]
            assert modes == [0o600]
            assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_missing_lock_has_no_holder(tmp_path: Path) -> None:
    assert holder(tmp_path / "missing") is None
    assert holder(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b"{}", b'{"pid": 1}'])
def test_a_stale_lock_file_has_no_holder(tmp_path: Path, content: bytes) -> None:
    (tmp_path / lock.FILE).write_bytes(content)
    assert holder(tmp_path) is None
    with StateLock(tmp_path):
        assert holder(tmp_path) == os.getpid()


def test_a_holder_counts_before_it_wrote_its_pid(tmp_path: Path) -> None:
    with (tmp_path / lock.FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holder(tmp_path) == 0
        with pytest.raises(LockedError, match="another process"):
            StateLock(tmp_path).__enter__()


def test_a_query_for_the_holder_does_not_prevent_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / lock.FILE).open("w") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(asking, fcntl.LOCK_UN))
        with StateLock(tmp_path):
            assert holder(tmp_path) == os.getpid()


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with StateLock(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    with child:
        assert holder(tmp_path) is None
        child.kill()


def test_missing_permission_is_reported(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    with StateLock(tmp_path / "state"), unprivileged():
        with pytest.raises(StoreError, match="Permission denied"):
            holder(tmp_path / "state")
        with pytest.raises(StoreError, match="Permission denied"):
            StateLock(tmp_path / "state").__enter__()
