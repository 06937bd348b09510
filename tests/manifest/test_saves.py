"""Fifty edits a second, by every way of saving: the last one wins.

The daemon is a real process without an engine: the tests check only what it accepts.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon, ask
from tests.harness.docker import Docker
from tests.harness.instance import Instance

SECONDS = 2.0
PER_SECOND = 50
PATIENCE = 60


def text(number: int) -> str:
    """Return a desired file that contains the number. Its length varies; half of it is invalid."""
    padding = "x" * (number * 37 % 400)
    specs = {"box": {"image": "box:1", "env": {"EDIT": f"<{number}>", "PADDING": padding}}}
    sandboxes = {name: {"spec": "box", "state": "stopped"} for name in ("alice", "bob")}
    return json.dumps({"version": 1, "specs": specs, "sandboxes": sandboxes}, indent=1) + "\n"


def run(*command: object, cwd: Path | None = None) -> None:
    """Run a command; a missing program fails the test."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def aside(path: Path, number: int) -> Path:
    fresh = path.parent / "aside" / "fresh"
    fresh.parent.mkdir(exist_ok=True)
    fresh.write_text(text(number))
    return fresh


def swap_in(link: Path, target: str) -> None:
    fresh = link.with_name("..tmp")
    fresh.symlink_to(target)
    fresh.replace(link)


# --- ways of saving: functions of the path and the number of the edit ---------------------------


def write_plainly(path: Path, number: int) -> None:
    path.write_text(text(number))


def rewrite_in_place(path: Path, number: int) -> None:
    """Save like nano."""
    with path.open("r+") as file:
        file.write(text(number))
        file.truncate()


def sed(path: Path, number: int) -> None:
    run("sed", "-i", f"s/<[0-9]*>/<{number}>/", path)


def copy(path: Path, number: int) -> None:
    run("cp", aside(path, number), path)


def move(path: Path, number: int) -> None:
    run("mv", aside(path, number), path)


def rsync(path: Path, number: int) -> None:
    # Two edits within a second may have the same size: its quick check would skip the second.
    run("rsync", "--ignore-times", aside(path, number), path)


def vim(backupcopy: str) -> Callable[[Path, int], None]:
    options = f"set writebackup backupcopy={backupcopy}"

    def save(path: Path, number: int) -> None:
        edit = f"%d|0r {aside(path, number)}|wq"
        run("vim.tiny", "-u", "NONE", "-es", "-c", options, "-c", edit, path)

    return save


def begin_repository(path: Path, number: int) -> None:
    run("git", "init", "-q", cwd=path.parent)
    for edit in (number, number + 1):
        path.write_text(text(edit))
        run("git", "add", path.name, cwd=path.parent)
        who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        run("git", *who, "commit", "-qm", edit, cwd=path.parent)
        run("git", "tag", f"edit{edit % 2}", cwd=path.parent)


def checkout(path: Path, number: int) -> None:
    run("git", "checkout", "-q", f"edit{number % 2}", cwd=path.parent)


def swap_link(path: Path, number: int) -> None:
    target = path.with_name(f"real{number % 2}")
    target.write_text(text(number))
    swap_in(path, target.name)


def publish(path: Path, number: int) -> None:
    """Save like Kubernetes: new folder, swap of the link to it, removal of the former folder."""
    folder = path.with_name(f"..{number}")
    folder.mkdir()
    (folder / path.name).write_text(text(number))
    swap_in(path.with_name("..data"), folder.name)
    shutil.rmtree(path.with_name(f"..{number - 1}"), ignore_errors=True)


def begin_mount(path: Path, number: int) -> None:
    publish(path, number)
    path.symlink_to(f"..data/{path.name}")


@dataclass(frozen=True)
class Way:
    """How the file is created, and how it is saved from then on.

    `contents`: the number of different contents, if not every edit has its own.
    """

    save: Callable[[Path, int], None]
    begin: Callable[[Path, int], None] = write_plainly
    contents: int | None = None

    def content(self, number: int) -> int:
        return number % self.contents if self.contents else number


WAYS = {
    "in place": Way(rewrite_in_place),
    "sed -i": Way(sed),
    "cp": Way(copy),
    "mv": Way(move),
    "rsync": Way(rsync),
    "vim, backupcopy=yes": Way(vim("yes")),
    "vim, backupcopy=no": Way(vim("no")),
    "git checkout": Way(checkout, begin_repository, contents=2),
    "link swap": Way(swap_link, swap_link),
    "..data swap": Way(publish, begin_mount),
}


# --- what the daemon accepts ---------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon without an engine, with its desired file in a separate folder."""
    host = f"unix://{tmp_path}/nobody.sock"
    instance = Instance("t", "t-", range(20000, 20100), Docker(host))
    folder = tmp_path / "etc"
    folder.mkdir()
    env = {"RECONCILER_DESIRED": str(folder / "desired.yaml")}
    with Daemon(instance, tmp_path, host=host, env=env) as daemon:
        daemon.desired = folder / "desired.yaml"
        yield daemon


def accepted(daemon: Daemon) -> set[int]:
    """Return the numbers of the edits that are in force."""
    assert daemon.running, daemon.tail()
    answer = ask(daemon.runtime_dir, "/v1/export")
    return {int(found) for found in re.findall(rb"<(\d+)>", answer.body if answer else b"")}


def errors(daemon: Daemon) -> list[object] | None:
    """Return the errors of the desired file; None if the daemon does not answer."""
    answer = ask(daemon.runtime_dir, "/v1/status")
    return list(answer.json()["desired"]["errors"]) if answer else None


def edit_for_a_while(way: Way, path: Path) -> int:
    """Save at the given rate, or as fast as possible; return the number of the last edit."""
    began = time.monotonic()
    number = 0
    while (elapsed := time.monotonic() - began) < SECONDS:
        number += 1
        way.save(path, number)
        time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
    print(f"{number} edits, {number / elapsed:.0f} a second")
    return number


@pytest.mark.parametrize("name", WAYS)
def test_last_of_many_edits_wins(alone: Daemon, name: str) -> None:
    way = WAYS[name]
    way.begin(alone.desired, 0)
    alone.start()
    alone.wait_until(lambda: accepted(alone), PATIENCE)
    last = way.content(edit_for_a_while(way, alone.desired))
    assert f"<{last}>" in alone.desired.read_text()
    saved = time.monotonic()
    alone.wait_until(lambda: accepted(alone) == {last}, PATIENCE)
    print(f"{name}: the last one in force after {time.monotonic() - saved:.2f} s")
    alone.wait_until(lambda: errors(alone) == [], PATIENCE)
    print(f"{name}: {len(alone.events('record.changed', 'alice'))} taken in")
    print(f"{name}: {len(alone.events('manifest.rejected'))} rejected meanwhile")
    assert not alone.events("record.deleted")
    assert len(alone.events("daemon.started")) == 1
    assert alone.terminate() == 0
    assert not any("Traceback" in line for line in alone.raw), alone.tail()
