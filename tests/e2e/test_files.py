"""Files that hang, die, or cannot be read block only the records that need them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import World, box, document
from tests.harness.fuse import HangingMount

NOBODY = 65534
# No account has this number.
STRANGER = 54321


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[HangingMount]:
    with HangingMount(tmp_path / "mount", llm_env="MODEL=small\n") as made:
        yield made


def threads(world: World) -> int:
    assert world.daemon.process is not None
    return len(list(Path(f"/proc/{world.daemon.process.pid}/task").iterdir()))


def assert_commands_answer(world: World) -> None:
    for command in (["status", "--json"], ["events"], ["export"]):
        done = world.daemon.cli(*command)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, as no folder of pytest's is."""
    folder = Path(tempfile.mkdtemp(prefix="rcld-files-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_user(
    world: World, folder: Path, *arguments: str, user: int = NOBODY, **env: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a command as another user, without a home, in a working directory that is gone."""
    homeless = {k: v for k, v in world.daemon.env.items() if k not in {"HOME", "XDG_STATE_HOME"}}
    merged = {**homeless, **env}
    program = [sys.executable, "-m", "tests.harness.as_user", str(user), str(folder / "gone")]
    return subprocess.run(
        [*program, *arguments],
        env={name: value for name, value in merged.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_hanging_env_file_blocks_only_its_record(world: World, mount: HangingMount) -> None:
    env = str(mount.path / "llm.env")
    world.start(alice=box(env_file=env), bob=box())
    before = world.ids()
    mount.hang()
    world.declare(alice=box(env_file=env), bob=box("paused"), carol=box(env_file=env), dave=box())
    world.wait(lambda: world.statuses().get("dave") == "RUNNING")
    world.wait(lambda: world.statuses()["bob"] == "PAUSED")
    world.wait(lambda: "no answer within" in world.row("carol")["reason"])
    assert world.statuses()["carol"] in {"ERROR", "MISSING"}
    assert world.statuses()["alice"] == "RUNNING"
    done = world.daemon.cli("reload")
    assert done.returncode == 1
    assert f"{world.daemon.desired}:" in done.stderr
    assert "no answer within" in done.stderr
    assert_commands_answer(world)
    many = threads(world)
    for _ in range(3):
        world.daemon.cli("reload")
    assert threads(world) <= many + 1
    mount.resume()
    world.wait_status(alice="RUNNING", bob="PAUSED", carol="RUNNING", dave="RUNNING")
    after = world.ids()
    assert before.items() <= after.items()
    assert not world.daemon.events("task.failed")


def test_a_dead_mount_blocks_only_its_record(world: World, mount: HangingMount) -> None:
    env = str(mount.path / "llm.env")
    world.start(alice=box(env_file=env))
    before = world.ids()
    mount.die()
    world.declare(alice=box(env_file=env), bob=box(env_file=env), carol=box())
    world.wait(lambda: world.statuses().get("carol") == "RUNNING")
    world.wait(lambda: "not connected" in world.row("bob")["reason"])
    assert world.statuses()["alice"] == "RUNNING"
    subprocess.run(["umount", "-l", mount.path], check=True)
    with HangingMount(mount.path, llm_env="MODEL=small\n"):
        world.wait_status(alice="RUNNING", bob="RUNNING", carol="RUNNING")
    assert before.items() <= world.ids().items()


def test_the_daemon_stops_in_time_while_files_hang(world: World, mount: HangingMount) -> None:
    world.start(alice=box(env_file=str(mount.path / "llm.env")))
    mount.hang()
    world.declare(alice=box(env_file=str(mount.path / "llm.env")), bob=box())
    world.wait(lambda: world.statuses().get("bob") == "RUNNING")
    assert world.daemon.terminate() == 0
    assert world.daemon.logs[-1]["event"] == "daemon.stopped"


def test_the_daemon_starts_with_a_hanging_desired_file(world: World, tmp_path: Path) -> None:
    with HangingMount(tmp_path / "etc", desired_yaml=document(alice=box())) as mount:
        world.daemon.env["RECONCILER_DESIRED"] = str(mount.path / "desired.yaml")
        mount.hang()
        world.daemon.start().wait_event("daemon.ready")
        rejected = world.daemon.wait_event("manifest.rejected")
        assert "no answer within" in rejected["error"]
        assert_commands_answer(world)
        mount.resume()
        world.wait_status(alice="RUNNING")
        mount.hang()
        assert world.daemon.terminate() == 0


def test_check_reports_a_hanging_file_like_the_daemon(world: World, mount: HangingMount) -> None:
    env = mount.path / "llm.env"
    world.declare(alice=box(env_file=str(env)), bob=box())
    assert world.daemon.cli("check").returncode == 0
    mount.hang()
    done = world.daemon.cli("check")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{world.daemon.desired}:")
    assert str(env) in line
    assert "no answer within" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_root_only_folder_is_an_error_of_its_record(world: World, open_folder: Path) -> None:
    secret, desired = open_folder / "secret", open_folder / "desired.yaml"
    secret.mkdir(mode=0o700)
    (secret / "llm.env").write_text("A=1\n")
    desired.write_text(document(alice=box(), bob=box(env_file=str(secret / "llm.env"))))
    state = str(open_folder / "none")
    paths = {"RECONCILER_STATE_DIR": state, "RECONCILER_DESIRED": str(desired)}
    done = as_user(world, open_folder, "check", **paths)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    place, _, message = line.partition(": ")
    _, number, column = place.rsplit(":", 2)
    text = desired.read_text().splitlines()[int(number) - 1]
    assert text[int(column) - 1 :].startswith('"env_file"'), line
    assert f"may not enter the folder {secret}" in message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_daemon_at_once(world: World, number: signal.Signals) -> None:
    world.start(alice=box())
    world.daemon.module = "tests.harness.slow_end"
    assert world.daemon.terminate() == 0
    mark = world.daemon.mark()
    world.daemon.start().wait_event("daemon.ready", since=mark)
    world.daemon.send(number)
    world.daemon.wait_event("daemon.stopping", since=mark)
    world.daemon.send(number)
    assert world.daemon.wait_exit() == 128 + number
    assert not world.daemon.events("daemon.stopped", since=mark)


def test_sighup_reloads(world: World) -> None:
    world.start(alice=box())
    world.daemon.send(signal.SIGHUP)
    assert world.daemon.wait_event("reload.done")["source"] == "SIGHUP"
    world.daemon.desired.write_text("sandboxes: [")
    world.daemon.send(signal.SIGHUP)
    failed = world.daemon.wait_event("reload.failed")
    assert str(world.daemon.desired) in failed["errors"][0]
    assert world.statuses() == {"alice": "RUNNING"}


def test_every_failed_start_is_logged_once(world: World, tmp_path: Path) -> None:
    world.start(alice=box())
    for change in (
        {},  # the lock is taken
        {"RECONCILER_WORKERS": "none"},
        {"RECONCILER_STATE_DIR": "/proc/none"},
        {"RECONCILER_STATE_DIR": str(tmp_path / "other"), "RECONCILER_RUNTIME_DIR": "/proc/none"},
    ):
        done = subprocess.run(
            [sys.executable, "-m", "reconciler", "run"],
            env={**world.daemon.env, **change},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1
        assert done.stdout == ""
        last = [json.loads(line) for line in done.stderr.splitlines()][-1]
        assert (last["event"], last["level"]) == ("daemon.failed", "error")
        assert last["error"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_commands_need_no_home_no_account_and_no_working_directory(
    world: World, open_folder: Path
) -> None:
    state, desired = open_folder / "state", open_folder / "desired.yaml"
    desired.write_text(document(alice=box()))
    state.mkdir(mode=0o700)
    os.chown(state, STRANGER, STRANGER)
    paths = {
        "RECONCILER_STATE_DIR": str(state),
        "RECONCILER_RUNTIME_DIR": str(state),
        "RECONCILER_DESIRED": str(desired),
    }
    for command in ("check", "export", "events"):
        done = as_user(world, open_folder, command, user=STRANGER, **paths)
        assert done.returncode == 0, (command, done.stderr)
    homeless = {**paths, "RECONCILER_STATE_DIR": None}
    done = as_user(world, open_folder, "events", user=STRANGER, **homeless)
    assert done.returncode == 1
    assert "set state_dir" in done.stderr
