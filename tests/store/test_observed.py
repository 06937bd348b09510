"""Observed time continues over restarts, and is durable with the rows that use it."""

import json
import sqlite3
from pathlib import Path

import pytest

from reconciler.core.errors import StoreError
from reconciler.store.observed_clock import ObservedClock
from reconciler.store.store import Store
from tests.store.conftest_store import opened


class Ticker:
    """A clock that a test moves."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def spend(store: Store, monotonic: Ticker, seconds: int) -> None:
    """Let time pass while the daemon runs."""
    for _ in range(seconds):
        monotonic.now += 1.0
        store.clock()


async def saved(state_dir: Path) -> Store:
    """Open the files as a kill at this moment would leave them; the clock stands still."""
    async with await Store.open_readonly(state_dir, monotonic=Ticker(7.0)) as found:
        return found


def test_only_the_monotonic_clock_moves_it():
    monotonic, wall = Ticker(100.0), Ticker(1e9)
    clock = ObservedClock(5.0, monotonic=monotonic, wall=wall)
    wall.now -= 1e8
    assert clock() == 5.0
    monotonic.now += 3.0
    assert clock() == 8.0


def test_a_gap_in_which_the_process_did_not_run_counts_for_a_minute():
    monotonic = Ticker(100.0)
    clock = ObservedClock(5.0, monotonic=monotonic, wall=Ticker(1e9))
    monotonic.now += 8 * 86400.0
    assert clock() == 65.0
    assert clock() == 65.0


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "-1.0"])
async def test_an_invalid_observed_time_is_an_error(tmp_path: Path, text: str) -> None:
    async with await opened(tmp_path) as store:
        store.put_fact("brake", "x")
    database = sqlite3.connect(tmp_path / "reconciler.db")
    update = "UPDATE state SET body = ? WHERE key = 'observed-seconds'"
    database.execute(update, (json.dumps(text),))
    database.commit()
    database.close()
    with pytest.raises(StoreError, match="observed time"):
        await opened(tmp_path)


def test_a_date_follows_the_present_wall_clock():
    monotonic, wall = Ticker(100.0), Ticker(1e9)
    clock = ObservedClock(5.0, monotonic=monotonic, wall=wall)
    assert clock.date(15.0) == 1e9 + 10
    wall.now += 3600
    assert clock.date(0.0) == 1e9 + 3600 - 5


async def test_it_continues_over_restarts_on_any_monotonic_clock(tmp_path: Path) -> None:
    for origin in (5000.0, 3.0, 0.0):
        monotonic = Ticker(origin)
        store = await opened(tmp_path, monotonic=monotonic)
        before = store.clock()
        spend(store, monotonic, 100)
        await store.close()
        assert store.clock() == before + 100
    assert (await saved(tmp_path)).clock() == 300.0


async def test_a_kill_leaves_no_time_ahead_of_the_clock(tmp_path: Path) -> None:
    monotonic = Ticker(0.0)
    async with await opened(tmp_path, monotonic=monotonic) as store:
        for number in range(5):
            spend(store, monotonic, 1000)
            since = store.clock()
            store.note_orphan("volume", f"v{number}", "alice", since, 60.0)
            await store.flush()
            left = await saved(tmp_path)
            assert left.orphans["volume"][f"v{number}"].since == since == left.clock()


@pytest.mark.parametrize(("orphans", "seconds"), [(True, 10.0), (False, 60.0)])
async def test_a_kill_loses_a_bounded_time(tmp_path: Path, orphans: bool, seconds: float) -> None:  # noqa: FBT001
    monotonic = Ticker(0.0)
    async with await opened(tmp_path, monotonic=monotonic) as store:
        if orphans:
            store.note_orphan("volume", "v", "alice", 0.0, 60.0)
        await store.flush()
        monotonic.now += seconds - 1
        store.save_time()
        assert store.pending == 0
        monotonic.now += 1
        store.save_time()
        await store.flush()
        assert (await saved(tmp_path)).clock() == seconds


async def test_a_new_database_after_a_loss_continues_the_time(tmp_path: Path) -> None:
    monotonic = Ticker(0.0)
    async with await opened(tmp_path, monotonic=monotonic) as store:
        spend(store, monotonic, 500)
        store.put_fact("brake", "x")
        await store.flush()
        for file in tmp_path.glob("reconciler.db*"):
            file.unlink()
        spend(store, monotonic, 500)
        store.put_fact("brake", "y")
        await store.flush()
        assert (await saved(tmp_path)).clock() == 1000.0


async def test_a_reader_beside_the_daemon_saves_no_time(tmp_path: Path) -> None:
    monotonic = Ticker(0.0)
    async with await opened(tmp_path, monotonic=monotonic) as store:
        store.put_fact("brake", "x")
        await store.flush()
        reader = await Store.open_readonly(tmp_path, monotonic=monotonic)
        spend(reader, monotonic, 500)
        await reader.close()
        assert (await saved(tmp_path)).clock() == 0.0
