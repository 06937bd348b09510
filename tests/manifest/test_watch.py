"""The watch reports every way of saving, immediately, once, and leaks nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import pytest

from reconciler.manifest import inotify
from reconciler.manifest.watch import Watch

# A report within SOON needed neither a rescan nor a quiet time, if these are NEVER.
NEVER = 120.0
SOON = 60.0


class Watched:
    """A watch that counts its reports (turns); `last` is the file's text at the last one."""

    def __init__(self, path: Path, extra=tuple, rescan=NEVER) -> None:
        self.watch = Watch(path, extra, rescan=rescan)
        self.path = path
        self.turns = 0
        self.last = ""
        self.at = 0.0
        self._turned = asyncio.Event()

    async def __aenter__(self):
        self._task = asyncio.create_task(self._count())
        await self.turn()
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _count(self):
        async with contextlib.aclosing(self.watch.changes()) as changes:
            async for _ in changes:
                self.turns += 1
                self.at = time.perf_counter()
                self.last = self.path.read_text() if self.path.is_file() else ""
                self._turned.set()

    async def turn(self, within: float = SOON) -> None:
        async with asyncio.timeout(within):
            await self._turned.wait()
        self._turned.clear()

    async def read(self, text: str) -> None:
        """Wait for a turn at which the file has this text."""
        async with asyncio.timeout(SOON):
            while self.last != text:
                await self._turned.wait()
                self._turned.clear()

    async def rest(self) -> None:
        """Wait until no more turns come."""
        with contextlib.suppress(TimeoutError):
            while True:
                await self.turn(0.5)

    async def nothing(self, during: float = 0.2) -> None:
        await asyncio.sleep(during)
        assert not self._turned.is_set()


def shell(script: str):
    def save(path: Path) -> None:
        subprocess.run(
            ["sh", "-ec", script], check=True, cwd=path.parent, env={**os.environ, "F": path.name}
        )

    return save


def save_like_vim(path: Path) -> None:
    backup = path.with_name(path.name + "~")
    path.rename(backup)
    path.write_text("new\n")
    backup.unlink()


def save_like_nano(path: Path) -> None:
    with path.open("r+") as file:
        file.write("new\n")
        file.truncate()


def save_by_rename(path: Path) -> None:
    fresh = path.with_name(".fresh.tmp")
    fresh.write_text("new\n")
    fresh.replace(path)


def save_slowly(path: Path) -> None:
    with path.open("w") as file:
        for part in ("n", "e", "w", "\n"):
            file.write(part)
            file.flush()
            time.sleep(0.01)


def delete_and_create(path: Path) -> None:
    path.unlink()
    path.write_text("new\n")


def swap_link(path: Path) -> None:
    path.with_name("other").write_text("new\n")
    link = path.with_name("link.tmp")
    link.symlink_to("other")
    link.replace(path)


WAYS = {
    "vim": save_like_vim,
    "nano": save_like_nano,
    "rename": save_by_rename,
    "slowly": save_slowly,
    "delete and create": delete_and_create,
    "link swap": swap_link,
    "sed -i": shell('sed -i s/old/new/ "$F"'),
    "cp": shell('echo new > t; cp t "$F"'),
    "cp -f --remove-destination": shell('echo new > t; cp --remove-destination t "$F"'),
    "mv": shell('echo new > t; mv t "$F"'),
    "ln -f": shell('echo new > t; ln -f t "$F"'),
    "ln -sfn": shell('echo new > t; ln -sfn t "$F"'),
    "echo": shell('echo new > "$F"'),
    "install": shell('echo new > t; install -m 644 t "$F"'),
    "tee": shell('echo new | tee "$F" >/dev/null'),
    "chmod": shell('echo new > t; touch -r "$F" t; mv t "$F"; chmod 600 "$F"'),
}


@pytest.fixture
def no_quiet_time(monkeypatch):
    """Only complete changes are reported, however slow the machine is."""
    monkeypatch.setattr(inotify, "QUIET", NEVER)
    monkeypatch.setattr(inotify, "MAX_SETTLE", NEVER)


@pytest.fixture
def desired(tmp_path):
    folder = tmp_path / "etc"
    folder.mkdir()
    path = folder / "desired.yaml"
    path.write_text("old\n")
    return path


@pytest.mark.usefixtures("no_quiet_time")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
async def test_every_way_of_saving_is_reported_when_complete(desired, way, as_folder):
    async with Watched(desired.parent if as_folder else desired) as watched:
        await asyncio.to_thread(WAYS[way], desired)
        await watched.turn()
        assert desired.read_text() == "new\n"
        await watched.rest()
        assert watched.turns <= 3


@pytest.mark.usefixtures("no_quiet_time")
async def test_half_written_file_is_not_reported(desired):
    async with Watched(desired) as watched:
        with desired.open("w") as file:
            file.write("half")
            file.flush()
            await watched.nothing()
            file.write(" and half")
        await watched.turn()
        assert watched.last == "half and half"
        assert watched.turns == 2


async def test_file_kept_open_is_reported_after_quiet_time(desired):
    async with Watched(desired) as watched:
        with desired.open("w") as file:
            file.write("all of it")
            file.flush()
            await watched.turn()


async def test_endless_writing_is_reported(desired, monkeypatch):
    monkeypatch.setattr(inotify, "QUIET", NEVER)
    async with Watched(desired) as watched, asyncio.timeout(SOON):
        with desired.open("w") as file:
            while watched.turns == 1:
                file.write("x")
                file.flush()
                await asyncio.sleep(0.01)


async def test_file_is_deleted_and_created_again(desired):
    async with Watched(desired) as watched:
        desired.unlink()
        await watched.turn()
        desired.write_text("new\n")
        await watched.turn()


async def test_folder_is_deleted_and_created_again(desired):
    async with Watched(desired) as watched:
        shutil.rmtree(desired.parent)
        await watched.turn()
        await watched.rest()
        desired.parent.mkdir()
        await watched.rest()
        desired.write_text("new\n")
        await watched.read("new\n")


async def test_folder_is_replaced_by_another(desired, tmp_path):
    async with Watched(desired) as watched:
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        (fresh / "desired.yaml").write_text("fresh\n")
        desired.parent.rename(tmp_path / "former")
        fresh.rename(desired.parent)
        await watched.read("fresh\n")
        await watched.rest()
        save_by_rename(desired)
        await watched.read("new\n")


async def test_missing_folders_are_watched_as_they_appear(tmp_path):
    path = tmp_path / "a" / "b" / "c" / "desired.yaml"
    async with Watched(path) as watched:
        path.parent.mkdir(parents=True)
        path.write_text("first\n")
        await watched.read("first\n")
        await watched.rest()
        save_by_rename(path)
        await watched.read("new\n")


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
async def test_link_swap_of_mounted_configuration_is_reported(tmp_path, as_folder):
    """Kubernetes has: desired.yaml -> ..data/desired.yaml, ..data -> ..2026_1."""
    mount = tmp_path / "mount"
    mount.mkdir()

    def publish(version: str) -> None:
        (mount / version).mkdir()
        (mount / version / "desired.yaml").write_text(version)
        (mount / "..tmp").symlink_to(version)
        (mount / "..tmp").rename(mount / "..data")

    publish("..1")
    (mount / "desired.yaml").symlink_to("..data/desired.yaml")
    async with Watched(mount if as_folder else mount / "desired.yaml") as watched:
        for version in ("..2", "..3"):
            publish(version)
            await watched.turn()
            assert (mount / "desired.yaml").read_text() == version


async def test_targets_of_links_are_watched(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "desired.yaml").write_text("old\n")
    (tmp_path / "etc").symlink_to("real")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "etc" / "desired.yaml")
    async with Watched(tmp_path / "link.yaml") as watched:
        save_like_vim(real / "desired.yaml")
        await watched.turn()


async def test_circular_links_do_no_harm(tmp_path):
    (tmp_path / "a.yaml").symlink_to("b.yaml")
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    async with Watched(tmp_path / "a.yaml") as watched:
        (tmp_path / "a.yaml").unlink()
        (tmp_path / "a.yaml").write_text("x")
        await watched.turn()


async def test_other_files_are_ignored(desired):
    async with Watched(desired.parent) as watched:
        for name in ("notes.txt", ".desired.yaml.swp", ".#desired.yaml", "desired.yaml~", "4913"):
            (desired.parent / name).write_text("x")
            (desired.parent / name).unlink()
        desired.read_text()
        await watched.nothing()


async def test_env_files_are_watched_while_they_are_named(desired, tmp_path):
    named: list[Path] = []
    first, second = tmp_path / "secrets" / "a.env", tmp_path / "b.env"
    async with Watched(desired, lambda: named) as watched:
        named.append(first)
        save_by_rename(desired)
        await watched.turn()
        await watched.rest()
        first.parent.mkdir()
        first.write_text("A=1\n")
        await watched.turn()
        await watched.rest()
        second.write_text("A=1\n")
        await watched.nothing()
        second.write_text("A=2\n")
        await watched.nothing()


async def test_last_of_fifty_edits_a_second_wins(desired):
    seen: list[str] = []

    async def read_all():
        async with contextlib.aclosing(Watch(desired, rescan=NEVER).changes()) as changes:
            async for _ in changes:
                seen.append(desired.read_text() if desired.exists() else "gone")
                await asyncio.sleep(0.01)

    task = asyncio.create_task(read_all())
    ways = [save_by_rename, save_like_vim, save_like_nano, delete_and_create]
    for number in range(100):
        ways[number % 4](desired)
        desired.write_text(str(number))
        await asyncio.sleep(0.02)
    async with asyncio.timeout(SOON):
        while seen[-1] != "99":  # noqa: ASYNC110 - a turn may come and have read less
            await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert "gone" not in seen


async def test_burst_between_two_reads_is_reported_once(desired):
    async with contextlib.aclosing(Watch(desired, rescan=NEVER).changes()) as changes:
        await anext(changes)
        for _ in range(500):
            save_by_rename(desired)
        await anext(changes)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(changes)


# --- without inotify ---


def refuse(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["Inotify", "Inotify.add_watch"])
async def test_rescan_detects_changes_without_inotify(desired, monkeypatch, what):
    owner, _, name = what.rpartition(".")
    target = inotify.Inotify if owner else inotify
    monkeypatch.setattr(target, name, refuse)
    async with Watched(desired, rescan=0.05) as watched:
        assert "raise fs.inotify.max_user_" in watched.watch.problem
        await watched.nothing()
        save_like_nano(desired)
        await watched.turn()
        monkeypatch.undo()
        async with asyncio.timeout(SOON):
            while watched.watch.problem:  # noqa: ASYNC110 - no event; each rescan retries
                await asyncio.sleep(0.01)


async def test_rescan_reports_only_changes(desired):
    async with Watched(desired, rescan=0.02) as watched:
        await watched.nothing()


async def test_watch_leaks_no_descriptors_or_tasks(desired):
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async with Watched(desired):
        pass
    before = descriptors()
    for _ in range(20):
        async with Watched(desired) as watched:
            save_by_rename(desired)
            await watched.turn()
    assert descriptors() == before
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.usefixtures("no_quiet_time")
async def test_edit_is_reported_without_delay(desired):
    times = []
    async with Watched(desired) as watched:
        for _ in range(200):
            began = time.perf_counter()
            save_by_rename(desired)
            await watched.turn()
            times.append((watched.at - began) * 1000)
    times.sort()
    print(
        f"edit to notification: median {statistics.median(times):.2f} ms, p99 {times[197]:.2f} ms"
    )
    assert len(times) == 200
