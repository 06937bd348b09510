"""A start on a full disk: the known state is read at once, and written when there is space."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from reconciler.core.errors import StoreError
from reconciler.store import sqlite
from reconciler.store.lock import StateLock
from reconciler.store.store import Store
from tests.store.conftest_store import Listener, fill, opened, record, small_disk


async def make(disk: Path) -> None:
    async with await opened(disk) as store:
        store.put_record(record("alice"))
        store.append("created", "alice", "it is wanted", {})


@asynccontextmanager
async def known_and_full(tmp_path: Path) -> AsyncIterator[tuple[Path, Path]]:
    """Yield a full disk with a database, and the file that fills it."""
    with small_disk(tmp_path / "disk") as disk:
        await make(disk)
        yield disk, fill(disk)


async def test_a_full_disk_at_start_is_read_and_written_later(tmp_path: Path) -> None:
    listener = Listener()
    async with known_and_full(tmp_path) as (disk, filler):
        async with await opened(disk, listener) as store:
            assert (set(store.records), len(listener.heard)) == ({"alice"}, 1)
            assert "space" in listener.heard[0]
            assert store.trouble is not None
            store.put_record(record("bob"))
            store.append("created", "bob", "it is wanted", {})
            with pytest.raises(StoreError, match="space"):
                await store.flush()
            filler.unlink()
            await listener.over.wait()
            assert len(listener.heard) == 2
            await store.flush()
        async with await Store.open_readonly(disk) as found:
            assert set(found.records) == {"alice", "bob"}
            assert [entry.sandbox for entry in await found.events()] == ["alice", "bob"]


async def test_it_recovers_without_pending_changes(tmp_path: Path) -> None:
    listener = Listener()
    async with (
        known_and_full(tmp_path) as (disk, filler),
        await opened(disk, listener) as store,
    ):
        filler.unlink()
        await listener.over.wait()
        assert store.trouble is None
        assert listener.heard[1:] == ["recovered"]


async def test_a_damaged_database_is_refused_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        await make(disk)
        (disk / sqlite.FILE).write_bytes(b"x" * 5000)
        fill(disk)
        with pytest.raises(StoreError, match="not a database"):
            await opened(disk)


async def test_a_damaged_database_is_refused_with_free_space(tmp_path: Path) -> None:
    await make(tmp_path)
    (tmp_path / sqlite.FILE).write_bytes(b"x" * 5000)
    with pytest.raises(StoreError, match="not a database"):
        await opened(tmp_path)


def test_a_missing_folder_is_not_full(tmp_path: Path) -> None:
    assert not sqlite.lacks_room(tmp_path / "nowhere")


def test_the_lock_needs_no_free_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with StateLock(disk, tmp_path / "a-longer-path-than-next-time"):
            pass
        fill(disk)
        with StateLock(disk, tmp_path / "socket"):
            assert (disk / "lock").read_text().endswith('socket"}')
