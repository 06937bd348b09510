"""A disk that does not answer is reported, and blocks nothing else."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.core.errors import StoreError
from reconciler.store.sqlite import Database
from reconciler.store.writer import DatabaseWorker
from tests.store.conftest_store import Listener, opened


class Gate:
    """Blocks every write to the database while it is shut."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self._open.set()
        write = Database.write

        def guarded(database: Database, *arguments: object) -> None:
            self._open.wait(120)
            write(database, *arguments)  # type: ignore[arg-type]

        patch.setattr(Database, "write", guarded)

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.setattr(DatabaseWorker.__init__, "__defaults__", (0.1,))
    made = Gate(monkeypatch)
    yield made
    made.open()


async def test_a_hung_write_is_reported_and_written_later(tmp_path: Path, gate: Gate) -> None:
    listener = Listener()
    async with await opened(tmp_path, listener) as store:
        gate.shut()
        store.append("tick", None, "", {})
        for _ in range(3):
            with pytest.raises(StoreError, match="does not answer within"):
                await store.flush()
        assert len(listener.heard) == 1
        assert store.trouble is not None
        gate.open()
        async with asyncio.timeout(60):
            await listener.over.wait()
        await store.flush()
        assert store.trouble is None
    async with await opened(tmp_path) as again:
        assert [entry.event for entry in await again.events()] == ["tick"]


async def test_it_closes_while_a_write_hangs(tmp_path: Path, gate: Gate) -> None:
    store = await opened(tmp_path)
    gate.shut()
    store.append("tick", None, "", {})
    with pytest.raises(StoreError):
        await store.flush()
    with pytest.raises(StoreError, match="does not answer"):
        await store.events()
    await store.close()
