import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from reconciler.core.action import Verb
from reconciler.core.disk_pressure import PulledImage
from reconciler.core.errors import StoreError
from reconciler.core.observed import Claim
from reconciler.core.restart import Death, Failure, SandboxMemory
from reconciler.core.snapshot import Identity
from reconciler.store import ledger, sqlite
from reconciler.store.sqlite import Database
from reconciler.store.store import Changes, LedgerEntry, Orphan, Store, Tombstone
from tests.store.conftest_store import NOW, Listener, fill, opened, record, small_disk, snapshot

ROOT = Path(__file__).parents[2]
WEEK = 604800.0
MEMORY = SandboxMemory(
    restarts=7,
    streak=2,
    not_before=123.5,
    death=Death("c1", 100.25, 137, oom_killed=True, error="oom", log_tail=("a", "ü\x00\x1b[0m")),
    failures=(Failure(Verb.CREATE, "1:abc", "no such image", 3, 1.0, 2.0),),
)


def everything(store: Store) -> dict[str, Any]:
    """Return the state without the ledger and the observed time."""
    facts = {name: value for name, value in store._facts.values.items() if "observed" not in name}
    return {
        "records": dict(store.records),
        "deleted": dict(store.deleted),
        "identities": dict(store._identities.values),
        "leased": dict(store.leased),
        "memories": dict(store._memories.values),
        "claims": dict(store.claims),
        "orphans": {kind: dict(known) for kind, known in store.orphans.items()},
        "facts": facts,
        "images": dict(store.images),
    }


async def reopened(state_dir: Path) -> dict[str, Any]:
    async with await Store.open_readonly(state_dir) as store:
        assert store.unreadable == {}
        return everything(store)


def full(store: Store) -> None:
    """Put a value of each kind."""
    rich = record(
        "alice",
        env={"TOKEN": "s3cret", "TEXT": "zwölf\n\x00"},
        ports=[{"name": "WEB", "container_port": 8000}],
        health={"path": "/health"},
        workspace={"path": "/w", "retain": "forever", "owner": "1:1"},
        resources={"cpus": 1.5, "memory": "4g", "gpus": "all", "ulimits": {"nofile": 1024}},
        stop_timeout="1500ms",
    )
    store.accept({"alice": rich, "bob": record("bob")}, [])
    store.accept({}, ["bob"])
    store.put_record(record("carl"))
    store.put_identity("alice", Identity("key-a", {8000: 30000, 8001: 30001}))
    store.put_identity("bob", Identity("key-b"))
    store.put_memory("alice", MEMORY)
    store.note_orphan("container", "c9", "carol", 5.5, 0.0)
    store.note_orphan("volume", "v9", "carol", 6.5, None)
    store.put_claim("alice", Claim("i", {"n": "1"}, {"0": "n"}, ("c1",), ("v1",), ("v1",)))
    store.put_fact("brake", "3 of 4")
    store.put_image("sha256:1", PulledImage("agent:1", 7.5, 8.5))
    store.put_image("sha256:2", PulledImage("agent:2", 7.5, 8.5))
    store.drop_image("sha256:2")


async def test_all_state_survives_a_restart(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        full(store)
        held = everything(store)
        await store.flush()
        assert store.pending == 0
        assert await reopened(tmp_path) == held
    async with await opened(tmp_path) as store:
        assert everything(store) == held
        assert store.pending == 0


async def test_close_writes_pending_changes_and_may_be_repeated(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    full(store)
    held = everything(store)
    await store.close()
    await store.close()
    assert await reopened(tmp_path) == held


async def test_a_new_store_is_empty(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        assert not store.desired_known
        assert store.identity("alice") is None
        assert store.memory("alice") == SandboxMemory()
        assert store.fact("brake") is None
        assert await store.events() == []
        assert not any(everything(store)["orphans"].values())


async def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        full(store)
        changes, _ = store._pending.take()
        store._pending.put_back(changes)
        shown = repr([*store.records.values(), store.identity("alice"), store, *changes])
        assert "s3cret" not in shown
        assert "key-a" not in shown


# accept


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    async with await opened(tmp_path / "state") as store:
        yield store


def test_accept_returns_the_changes(store: Store) -> None:
    first = {name: record(name) for name in ("alice", "bob", "carol")}
    assert store.accept(first, []) == Changes(added=frozenset(first))
    assert store.desired_known
    second = {"alice": record("alice"), "bob": record("bob", image="newer"), "dave": record("dave")}
    assert store.accept(second, ["carol", "unknown"]) == Changes(
        added=frozenset({"dave"}), changed=frozenset({"bob"}), removed=frozenset({"carol"})
    )
    assert sorted(store.records) == ["alice", "bob", "dave"]
    assert store.records["bob"].spec.image == "newer"
    assert not store.accept(second, [])


def test_an_empty_desired_file_counts_as_known(store: Store) -> None:
    store.accept({}, [])
    assert store.desired_known


def test_a_held_record_stays_as_last_accepted(store: Store) -> None:
    store.accept({"alice": record("alice"), "bob": record("bob")}, [])
    assert not store.accept({"alice": record("alice")}, [])
    assert "bob" in store.records


def test_a_record_keeps_the_time_of_its_first_acceptance(store: Store) -> None:
    store.accept({"alice": record("alice", created_at=1.0)}, [])
    assert not store.accept({"alice": record("alice", created_at=2.0)}, [])
    store.accept({"alice": record("alice", image="newer", created_at=3.0)}, [])
    assert store.records["alice"].created_at == 1.0


@pytest.mark.parametrize(
    ("workspace", "retain"),
    [
        ({"path": "/w", "retain": "forever"}, None),
        ({"path": "/w", "retain": 0}, 0.0),
        ({"path": "/w", "retain": "1h"}, 3600.0),
        ({"path": "/w"}, WEEK),
        (None, WEEK),
    ],
)
def test_a_removed_record_leaves_a_tombstone(
    store: Store, workspace: dict[str, Any] | None, retain: float | None
) -> None:
    store.accept({"alice": record("alice", workspace=workspace)}, [])
    store.accept({}, ["alice"])
    assert store.deleted == {"alice": Tombstone("alice", retain)}
    assert store.records == {}


def test_a_record_declared_again_has_no_tombstone(store: Store) -> None:
    store.accept({"alice": record("alice")}, [])
    store.accept({}, ["alice"])
    assert store.accept({"alice": record("alice")}, []).added == {"alice"}
    assert store.deleted == {}


def test_a_declared_name_is_not_removed(store: Store) -> None:
    store.accept({"alice": record("alice")}, [])
    assert not store.accept({"alice": record("alice")}, ["alice"])
    assert "alice" in store.records


# identities


def test_a_host_port_is_leased_once(store: Store) -> None:
    store.put_identity("alice", Identity("a", {80: 30000}))
    with pytest.raises(ValueError, match="30000"):
        store.put_identity("bob", Identity("b", {80: 30000}))
    with pytest.raises(ValueError, match="30001"):
        store.put_identity("bob", Identity("b", {80: 30001, 81: 30001}))
    assert store.leased == {30000: "alice"}
    assert store.identity("bob") is None
    store.put_identity("alice", Identity("a", {80: 30001, 81: 30000}))
    assert store.leased == {30001: "alice", 30000: "alice"}


async def test_ports_move_between_sandboxes_in_one_batch(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        store.put_identity("alice", Identity("a", {80: 1}))
        store.put_identity("bob", Identity("b", {80: 2}))
        await store.flush()
        store.put_identity("alice", Identity("a"))
        store.put_identity("bob", Identity("b", {80: 1}))
        store.put_identity("alice", Identity("a", {80: 2}))
        await store.flush()
        assert (await reopened(tmp_path))["leased"] == {1: "bob", 2: "alice"}


def test_a_callers_mapping_is_not_shared(store: Store) -> None:
    ports = {80: 30000}
    store.put_identity("alice", Identity("a", ports))
    ports[80] = 1
    assert store.identity("alice") == Identity("a", {80: 30000})


def test_forgetting_keeps_the_key_until_the_volume_is_gone(store: Store) -> None:
    store.accept({"alice": record("alice")}, [])
    store.put_identity("alice", Identity("a", {80: 30000}))
    store.put_memory("alice", MEMORY)
    store.accept({}, ["alice"])
    assert store.leased == {30000: "alice"}
    store.forget("alice")
    assert store.deleted == {}
    assert store.leased == {}
    assert store.memory("alice") == SandboxMemory()
    assert store.identity("alice") == Identity("a")
    store.drop_key("alice")
    assert store.identity("alice") is None


def test_a_record_that_exists_is_not_forgotten(store: Store) -> None:
    store.accept({"alice": record("alice")}, [])
    store.put_identity("alice", Identity("a", {80: 30000}))
    store.put_memory("alice", MEMORY)
    before = everything(store)
    store.forget("alice")
    store.drop_key("alice")
    assert everything(store) == before


def test_forgetting_an_unknown_name_is_no_error(store: Store) -> None:
    store.forget("nobody")
    store.drop_key("nobody")
    store.remove_record("nobody")
    store.drop_orphan("volume", "nothing")
    assert store.pending == 0


# orphans and facts


def test_an_orphan_keeps_its_first_time(store: Store) -> None:
    store.note_orphan("volume", "v", "alice", 10.0, 60.0)
    assert store.note_orphan("volume", "v", "alice", 20.0, None) == Orphan("alice", 10.0, None)
    assert store.orphans["container"] == {}
    store.drop_orphan("volume", "v")
    assert store.note_orphan("volume", "v", "alice", 30.0, 60.0).since == 30.0


def test_facts_are_put_and_dropped(store: Store) -> None:
    store.put_fact("brake", "3")
    assert store.fact("brake") == "3"
    store.put_fact("brake", None)
    assert store.fact("brake") is None


async def test_an_equal_value_is_not_written(store: Store) -> None:
    full(store)
    await store.flush()
    store.put_memory("alice", MEMORY)
    store.put_fact("brake", "3 of 4")
    store.note_orphan("volume", "v9", "carol", 99.0, None)
    store.put_identity("alice", Identity("key-a", {8000: 30000, 8001: 30001}))
    assert store.pending == 0


# ledger


def ids(entries: list[LedgerEntry]) -> list[int]:
    return [entry.id for entry in entries]


async def test_the_ledger_is_read_oldest_first_durable_or_not(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        for number in range(1, 7):
            store.append("tick", "alice" if number % 2 else None, "because", {"number": number})
            if number == 3:
                await store.flush()
        assert ids(await store.events()) == [1, 2, 3, 4, 5, 6]
        assert ids(await store.events("alice")) == [1, 3, 5]
        assert ids(await store.events(limit=2)) == [5, 6]
        assert ids(await store.events("alice", limit=2)) == [3, 5]
        assert ids(await store.events(after=2, limit=2)) == [3, 4]
        assert ids(await store.events("alice", after=1)) == [3, 5]
        assert ids(await store.events(after=6)) == []
        assert ids(await store.events(after=0, limit=2)) == [1, 2]
        assert ids(await store.events(limit=0)) == []
        assert (await store.events(limit=1))[0] == LedgerEntry(
            6, NOW, "tick", None, "because", {"number": 6}
        )


async def test_ledger_ids_continue_after_a_restart(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        store.append("one", None, "", {})
    async with await opened(tmp_path) as store:
        assert store.append("two", None, "", {}).id == 2
        assert ids(await store.events()) == [1, 2]


async def test_a_sandboxs_history_outlives_it(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        store.accept({"alice": record("alice")}, [])
        store.append("sandbox.died", "alice", "exit code 1", {"log_tail": ("a", "b")})
        store.accept({}, ["alice"])
        store.forget("alice")
        store.drop_key("alice")
    async with await opened(tmp_path) as store:
        (entry,) = await store.events("alice")
        assert entry.data == {"log_tail": ["a", "b"]}


async def test_a_crash_loop_pushes_out_no_other_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MAX_ROWS_PER_SANDBOX", 50)
    async with await opened(tmp_path, ledger_rows=400) as store:
        store.append("created", "quiet", "", {})
        for _ in range(10):
            for _ in range(100):
                store.append("died", "loop", "", {})
            await store.flush()
        assert len(await store.events("loop", limit=10_000)) <= 50 + ledger._PRUNE_EVERY
        assert len(await store.events("quiet")) == 1


async def test_the_ledger_is_bounded_overall(tmp_path: Path) -> None:
    async with await opened(tmp_path, ledger_rows=100) as store:
        for number in range(2000):
            store.append("tick", f"sandbox-{number % 100}", "", {})
            if number % 50 == 0:
                await store.flush()
        left = await store.events(limit=10_000)
        assert 100 <= len(left) <= 100 + ledger._PRUNE_EVERY + 50
        assert left[-1].id == 2000


def test_pending_entries_are_bounded(store: Store) -> None:
    for _ in range(ledger.MAX_PENDING + 5):
        store.append("tick", None, "", {})
    assert store.pending == ledger.MAX_PENDING


@pytest.mark.parametrize(
    "data",
    [
        {"line": "x" * 1_000_000},
        {"lines": ["x" * 4000] * 1000},
        {"path": "\udcff", 3: Path("/tmp"), "set": {1}},
    ],
)
async def test_an_entry_is_bounded_and_always_writable(store: Store, data: Any) -> None:
    store.append("sandbox.died", "alice", "\udcff" + "y" * 100_000, data)
    await store.flush()
    (entry,) = await store.events()
    assert len(entry.cause) == ledger.MAX_TEXT
    assert len(str(entry.data)) <= ledger.MAX_DATA + 100


# rows that cannot be read


async def broken(tmp_path: Path, *statements: str) -> Store:
    async with await opened(tmp_path) as store:
        full(store)
    with closing(sqlite3.connect(tmp_path / sqlite.FILE, isolation_level=None)) as connection:
        for statement in statements:
            connection.executescript(statement)
    return await opened(tmp_path)


ALICE = "kind = 'record' AND key = 'alice'"
UNREADABLE = [
    *(
        f"INSERT INTO state VALUES ('spec', 'bad', '{body}');"
        f"UPDATE state SET body = json_set(body, '$.spec', 'bad') WHERE {ALICE}"
        for body in ('{"image": "x", "newer_field": 1}', "not json", "[]")
    ),
    f"UPDATE state SET body = json_set(body, '$.state', 'hibernating') WHERE {ALICE}",
    f"UPDATE state SET body = json_remove(body, '$.spec') WHERE {ALICE}",
    f"UPDATE state SET body = 'not json' WHERE {ALICE}",
    f"UPDATE state SET body = '[]' WHERE {ALICE}",
]


@pytest.mark.parametrize("statement", UNREADABLE)
async def test_an_unreadable_record_is_held_not_lost(tmp_path: Path, statement: str) -> None:
    async with await broken(tmp_path, statement) as store:
        assert list(store.unreadable) == ["record alice"]
        assert list(store.held) == ["alice"]
        assert "alice" not in store.records
        store.forget("alice")
        store.drop_key("alice")
        assert store.identity("alice") == Identity("key-a", {8000: 30000, 8001: 30001})
        store.put_fact("other", "change")
    async with await opened(tmp_path) as store:
        assert list(store.held) == ["alice"]
        store.accept({"alice": record("alice")}, [])
        assert store.held == {}
    assert "alice" in (await reopened(tmp_path))["records"]


async def test_records_of_one_spec_share_it_in_memory(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        store.accept({name: record(name) for name in ("a", "b", "c")}, [])
    async with await opened(tmp_path) as store:
        first, *others = (store.records[name].spec for name in ("a", "b", "c"))
        assert all(other is first for other in others)


async def test_a_damaged_spec_is_written_again_with_its_record(tmp_path: Path) -> None:
    damage = "UPDATE state SET body = 'damaged' WHERE kind = 'spec'"
    async with await broken(tmp_path, damage) as store:
        assert {"alice", "carl"} <= set(store.held)
        store.accept({"alice": record("alice")}, [])
    assert {"alice", "carl"} <= set((await reopened(tmp_path))["records"])


async def test_a_spec_is_stored_once_and_removed_with_its_last_record(tmp_path: Path) -> None:
    def specs() -> int:
        with closing(sqlite3.connect(tmp_path / sqlite.FILE)) as connection:
            count = "SELECT count(*) FROM state WHERE kind = 'spec'"
            return int(connection.execute(count).fetchone()[0])

    async with await opened(tmp_path) as store:
        store.accept({name: record(name) for name in ("a", "b", "c")}, [])
        await store.flush()
        assert specs() == 1
    async with await opened(tmp_path) as store:
        store.accept({"d": record("d", image="other")}, ["a", "b"])
        await store.flush()
        assert specs() == 2
        store.accept({}, ["c", "d"])
        await store.flush()
        assert specs() == 0


async def test_rows_of_an_unknown_kind_stay(tmp_path: Path) -> None:
    newer = "INSERT INTO state VALUES ('newer', 'alice', '{}')"
    async with await broken(tmp_path, newer) as store:
        assert store.unreadable == {}
        store.put_fact("other", "change")
    with closing(sqlite3.connect(tmp_path / sqlite.FILE)) as connection:
        found = connection.execute("SELECT key FROM state WHERE kind = 'newer'").fetchall()
    assert found == [("alice",)]


@pytest.mark.parametrize(
    "kind",
    ["tombstone", "identity", "memory", "orphan_container", "orphan_volume", "claim", "image"],
)
async def test_an_unreadable_row_of_each_kind_is_skipped(tmp_path: Path, kind: str) -> None:
    statement = f"UPDATE state SET body = '{{\"none\": [\"of it\"]}}' WHERE kind = '{kind}'"
    async with await broken(tmp_path, statement) as store:
        unreadable = {key.partition(" ")[0] for key in store.unreadable}
        assert unreadable == (set() if kind == "memory" else {kind})


async def test_an_unreadable_record_can_be_removed(tmp_path: Path) -> None:
    async with await broken(tmp_path, UNREADABLE[0]) as store:
        assert store.accept({}, ["alice"]).removed == {"alice"}
        assert store.deleted["alice"].retain == WEEK
    assert "alice" not in (await reopened(tmp_path))["records"]


async def test_an_unreadable_memory_shows_no_secret(tmp_path: Path) -> None:
    async with await broken(
        tmp_path,
        'UPDATE state SET body = \'{"restarts": "many", "s3cret": 1}\' WHERE kind = \'memory\'',
    ) as store:
        assert list(store.unreadable) == ["memory alice"]
        assert "s3cret" not in str(store.unreadable)
        assert store.memory("alice") == SandboxMemory()
        store.put_memory("alice", MEMORY)
        assert store.unreadable == {}


async def test_unknown_fields_of_a_memory_are_ignored(tmp_path: Path) -> None:
    async with await broken(
        tmp_path, "UPDATE state SET body = '{\"restarts\": 3, \"newer\": {}}' WHERE kind = 'memory'"
    ) as store:
        assert store.memory("alice") == SandboxMemory(restarts=3)


# readers


async def test_a_reader_without_a_database_is_empty(tmp_path: Path) -> None:
    async with await Store.open_readonly(tmp_path / "state") as reader:
        full(reader)
        await reader.flush()
        assert sorted(reader.records) == ["alice", "carl"]
        assert await reader.events() == []
    assert not (tmp_path / "state").exists()


async def test_a_readers_changes_are_not_written(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        full(store)
        await store.flush()
        before = everything(store)
        async with await Store.open_readonly(tmp_path) as reader:
            reader.accept({}, ["alice"])
            reader.append("planned", None, "", {})
            await reader.flush()
            assert await store.events() == []
        assert await reopened(tmp_path) == before


# durability


async def test_changes_become_durable_without_a_flush(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        full(store)
        held = everything(store)
        while store.pending:  # noqa: ASYNC110 - nothing tells, for nobody waits
            await asyncio.sleep(0.001)
        assert await reopened(tmp_path) == held


def counted(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> list[int]:
    """Record the size of each transaction; call ``before`` with its number first."""
    sizes: list[int] = []
    real = Database.write

    def write(database: Database, changes: Any, entries: Any) -> None:
        sizes.append(len(changes) + len(entries))
        before(len(sizes))
        real(database, changes, entries)

    monkeypatch.setattr(Database, "write", write)
    return sizes


async def test_concurrent_flushes_share_a_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = counted(monkeypatch, lambda _: None)
    store = await opened(tmp_path)

    async def change(number: int) -> None:
        store.put_fact(f"fact-{number}", "x")
        await store.flush()

    await asyncio.gather(*(change(number) for number in range(100)))
    # The observed time is in each.
    assert sum(sizes) == 100 + len(sizes)
    assert len(sizes) <= 2
    await store.close()


async def test_a_cancelled_flush_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    counted(monkeypatch, lambda _: loop.call_soon_threadsafe(begun.set))
    store = await opened(tmp_path)
    full(store)
    store.append("tick", None, "", {})
    flush = asyncio.create_task(store.flush())
    await begun.wait()
    flush.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flush
    held = everything(store)
    await store.flush()
    assert await reopened(tmp_path) == held
    assert ids(await store.events()) == [1]
    await store.close()


async def test_trouble_and_recovery_are_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        if number <= 5:
            raise StoreError("the disk is on fire")

    counted(monkeypatch, fail)
    listener = Listener()
    async with await opened(tmp_path, listener) as store:
        full(store)
        held = everything(store)
        with pytest.raises(StoreError, match="on fire"):
            await store.flush()
        assert store.trouble is not None
        await listener.over.wait()
        assert listener.heard == ["trouble: the disk is on fire", "recovered"]
        assert store.pending == 0
        assert await reopened(tmp_path) == held


async def test_the_store_recovers_from_a_value_that_cannot_be_stored(tmp_path: Path) -> None:
    listener = Listener()
    async with await opened(tmp_path, listener) as store:
        store.put_fact("odd", b"no text")  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="cannot be stored"):
            await store.flush()
        store.put_fact("odd", None)
        await store.flush()
        assert listener.heard[-1] == "recovered"


async def test_a_full_disk_blocks_nothing_and_recovers(tmp_path: Path) -> None:
    listener = Listener()
    with small_disk(tmp_path / "disk") as disk:
        async with await opened(disk, listener) as store:
            names = {f"sandbox-{n}": record(f"sandbox-{n}") for n in range(200)}
            store.accept(names, [])
            await store.flush()
            filler = fill(disk)
            store.accept({}, names)
            for name in names:
                store.put_memory(name, MEMORY)
                store.append("deleted", name, "taken out of the file", {})
            with pytest.raises(StoreError, match="space"):
                await store.flush()
            for name in names:
                store.forget(name)
            assert store.records == {}
            assert len(await store.events(limit=1000)) == 200
            assert len((await reopened(disk))["records"]) == 200
            filler.unlink()
            await listener.over.wait()
            await store.flush()
            assert len(listener.heard) == 2
            assert "free space" in listener.heard[0]
            assert await reopened(disk) == everything(store)


async def test_a_full_disk_leaves_one_consistent_moment(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        async with await opened(disk) as store:
            durable = everything(store)
            for number in range(2000):
                name = f"sandbox-{number}"
                store.accept({name: record(name, env={"PAD": "x" * 2000})}, [])
                store.put_identity(name, Identity("key", {80: number}))
                try:
                    await store.flush()
                except StoreError:
                    break
                durable = everything(store)
            assert store.trouble is not None
            assert await reopened(disk) == durable


async def test_a_deleted_database_is_recreated_whole(tmp_path: Path) -> None:
    async with await opened(tmp_path) as store:
        full(store)
        await store.flush()
        for path in tmp_path.glob("reconciler.db*"):
            path.unlink()
        store.put_fact("one", "more")
        await store.flush()
        assert await reopened(tmp_path) == everything(store)


async def test_a_replaced_database_is_not_written(tmp_path: Path) -> None:
    listener = Listener()
    async with await opened(tmp_path / "b") as other:
        full(other)
    async with await opened(tmp_path / "a", listener) as store:
        for path in (tmp_path / "a").glob("reconciler.db*"):
            path.unlink()
        (tmp_path / "b" / sqlite.FILE).rename(tmp_path / "a" / sqlite.FILE)
        before = snapshot(tmp_path / "a")
        store.put_fact("one", "more")
        with pytest.raises(StoreError, match="replaced"):
            await store.flush()
        assert store.fact("one") == "more"
    assert snapshot(tmp_path / "a") == before
    assert len(listener.heard) == 1


async def test_opening_fails_clearly(tmp_path: Path) -> None:
    (tmp_path / sqlite.FILE).write_bytes(b"junk" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        await opened(tmp_path)
    with pytest.raises(StoreError, match="damaged"):
        await Store.open_readonly(tmp_path)


async def test_close_leaves_no_task_thread_or_descriptor(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def once() -> None:
        async with await opened(tmp_path) as store:
            full(store)
            await store.flush()

    await once()
    before = descriptors(), len(asyncio.all_tasks())
    for _ in range(20):
        await once()
    assert (descriptors(), len(asyncio.all_tasks())) == before


# kill -9

WRITER = """
import asyncio, sys
from pathlib import Path
from tests.store.conftest_store import opened, record
from reconciler.core.snapshot import Identity

async def main():
    async with await opened(Path(sys.argv[1])) as store:
        for number in range(1, 100_000):
            name = f"sandbox-{number}"
            store.accept({name: record(name)}, [f"sandbox-{number - 3}"])
            store.put_identity(name, Identity(f"key-{number}", {80: number}))
            store.forget(f"sandbox-{number - 3}")
            store.append("accepted", name, "test", {})
            await store.flush()
            print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [0, 1, 2, 17, 50, 123, 300])
async def test_flushed_changes_survive_a_kill(tmp_path: Path, acknowledged: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        for number in range(1, acknowledged + 1):
            assert process.stdout.readline() == f"{number}\n"
        process.kill()
        rest = process.stdout.read().splitlines(keepends=True)
    last = max([acknowledged, *(int(line) for line in rest if line.endswith("\n"))])
    async with await opened(tmp_path) as store:
        # The batch that was under way may have become durable too, whole or not at all.
        reached = max((int(name.removeprefix("sandbox-")) for name in store.records), default=0)
        assert reached in {last, last + 1}
        alive = [f"sandbox-{n}" for n in range(max(1, reached - 2), reached + 1)]
        assert sorted(store.records) == sorted(alive)
        assert sorted(store.leased.values()) == sorted(alive)
        assert [entry.id for entry in await store.events(limit=9999)][-1:] == [reached][:reached]


def dies_at(statement: int, state_dir: Path, changes: Any, entries: Any) -> bool:
    """Write in a process that kills itself before its n-th statement; return whether it did."""
    pid = os.fork()
    if pid == 0:
        left = iter(range(statement))
        database = Database(state_dir, 100, readonly=False)
        database.open()
        assert database._connection is not None
        database._connection.set_trace_callback(
            lambda _: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)
        )
        database.write(changes, entries)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def test_a_kill_before_any_statement_of_a_batch_leaves_all_or_nothing(tmp_path: Path) -> None:
    store = asyncio.run(opened(tmp_path / "unused"))
    full(store)
    changes, entries = store._pending.take()
    asyncio.run(store.close())
    before = asyncio.run(reopened(tmp_path / "empty"))
    statements = 0
    while dies_at(statements, tmp_path / "state", changes, entries):
        assert asyncio.run(reopened(tmp_path / "state")) == before
        statements += 1
    assert asyncio.run(reopened(tmp_path / "state")) == everything(store)
    print(f"killed before each of {statements} statements")
    assert statements >= 20
