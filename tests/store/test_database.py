import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from reconciler.core.errors import StoreError
from reconciler.store import sqlite
from tests.store.conftest_store import fill, remount, small_disk, snapshot, unprivileged


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def put_fact(connection: sqlite3.Connection, value: str) -> None:
    with sqlite.transaction(connection):
        connection.execute("INSERT OR REPLACE INTO state VALUES ('fact', 'fact', ?)", (value,))


def fact(connection: sqlite3.Connection) -> str | None:
    row = connection.execute("SELECT body FROM state WHERE kind = 'fact'").fetchone()
    return row and row[0]


def make(state_dir: Path, value: str = "kept") -> Path:
    with closing(sqlite.connect(state_dir)) as connection:
        put_fact(connection, value)
    return state_dir / sqlite.FILE


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_database_is_private_for_any_umask(
    state_dir: Path, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    with closing(sqlite.connect(state_dir)) as connection:
        put_fact(connection, "secret")
        files = sorted(state_dir.iterdir())
        assert [path.name for path in files] == [
            "reconciler.db",
            "reconciler.db-shm",
            "reconciler.db-wal",
        ]
        assert {mode(path) for path in files} == {0o600}
    assert mode(state_dir) == 0o700


def test_a_readable_database_is_made_private(state_dir: Path) -> None:
    make(state_dir).chmod(0o644)
    with closing(sqlite.connect(state_dir)) as connection:
        put_fact(connection, "secret")
        assert {mode(path) for path in state_dir.iterdir()} == {0o600}


def test_files_that_root_creates_belong_to_the_folders_owner(state_dir: Path) -> None:
    state_dir.mkdir()
    os.chown(state_dir, 65534, 65534)
    with closing(sqlite.connect(state_dir)) as connection:
        put_fact(connection, "kept")
        assert {path.stat().st_uid for path in state_dir.iterdir()} == {65534}


def test_connection_pragmas(state_dir: Path) -> None:
    with closing(sqlite.connect(state_dir)) as connection:
        found = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in (
                "journal_mode",
                "synchronous",
                "busy_timeout",
                "application_id",
                "user_version",
            )
        }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 1,
        "busy_timeout": 5000,
        "application_id": sqlite.APPLICATION_ID,
        "user_version": sqlite.VERSION,
    }


def test_reopening_finds_the_data(state_dir: Path) -> None:
    make(state_dir)
    with closing(sqlite.connect(state_dir)) as connection:
        assert fact(connection) == "kept"


def test_an_empty_file_is_a_new_database(state_dir: Path) -> None:
    state_dir.mkdir()
    (state_dir / sqlite.FILE).touch()
    make(state_dir)


def test_a_transaction_that_fails_leaves_nothing(state_dir: Path) -> None:
    with closing(sqlite.connect(state_dir)) as connection:
        with pytest.raises(sqlite3.IntegrityError):
            half_a_transaction(connection)
        assert fact(connection) is None


def half_a_transaction(connection: sqlite3.Connection) -> None:
    with sqlite.transaction(connection):
        connection.execute("INSERT INTO state VALUES ('fact', 'fact', 'half')")
        connection.execute("INSERT INTO state VALUES ('fact', 'fact', 'half')")


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database\n" * 1000)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scribbled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


def header_only(path: Path) -> None:
    os.truncate(path, 100)


@pytest.mark.parametrize("damage", [garbage, truncated, scribbled, header_only])
@pytest.mark.parametrize("connect", [sqlite.connect, sqlite.connect_readonly])
def test_a_damaged_file_is_refused_and_left_as_it_is(
    state_dir: Path,
    damage: Callable[[Path], None],
    connect: Callable[[Path], object],
) -> None:
    path = make(state_dir)
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"(?s)damaged.*Nothing was changed.*Move it.*away"):
        connect(state_dir)
    assert path.read_bytes() == before


def test_a_new_database_replaces_a_damaged_one_that_was_moved(state_dir: Path) -> None:
    path = make(state_dir)
    garbage(path)
    with pytest.raises(StoreError):
        sqlite.connect(state_dir)
    for file in state_dir.glob("reconciler.db*"):
        file.rename(state_dir / f"old-{file.name}")
    make(state_dir)


@pytest.mark.parametrize("connect", [sqlite.connect, sqlite.connect_readonly])
def test_a_newer_releases_database_is_refused_and_left_as_it_is(
    state_dir: Path, connect: Callable[[Path], object]
) -> None:
    path = make(state_dir)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer release"):
        connect(state_dir)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_as_it_is(state_dir: Path) -> None:
    state_dir.mkdir()
    path = state_dir / sqlite.FILE
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        sqlite.connect(state_dir)
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_refused(state_dir: Path) -> None:
    (state_dir / sqlite.FILE).mkdir(parents=True)
    with pytest.raises(StoreError):
        sqlite.connect(state_dir)


def test_a_link_in_its_place_is_refused(state_dir: Path, tmp_path: Path) -> None:
    state_dir.mkdir()
    (tmp_path / "victim").touch(mode=0o644)
    (state_dir / sqlite.FILE).symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError):
        sqlite.connect(state_dir)
    assert mode(tmp_path / "victim") == 0o644


def test_a_file_in_the_folders_place_is_refused(state_dir: Path) -> None:
    state_dir.touch()
    with pytest.raises(StoreError, match=str(state_dir)):
        sqlite.connect(state_dir)


@pytest.mark.parametrize("connect", [sqlite.connect, sqlite.connect_readonly])
def test_missing_permission_is_reported(
    state_dir: Path, connect: Callable[[Path], object], tmp_path: Path
) -> None:
    make(state_dir)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    before = snapshot(state_dir)
    with unprivileged(), pytest.raises(StoreError, match="Permission denied"):
        connect(state_dir)
    assert snapshot(state_dir) == before


def test_a_read_only_disk_refuses_the_daemon_and_serves_the_reader(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        make(disk)
        before = snapshot(disk)
        remount(disk, "ro")
        with pytest.raises(StoreError, match="Read-only"):
            sqlite.connect(disk)
        reader = sqlite.connect_readonly(disk)
        assert reader is not None
        with closing(reader):
            assert fact(reader) == "kept"
        assert snapshot(disk) == before
        remount(disk, "rw")
        make(disk, "again")


def test_a_full_disk_at_the_first_start_does_no_damage(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        filler = fill(disk)
        with pytest.raises(StoreError, match="space"):
            sqlite.connect(disk)
        filler.unlink()
        make(disk)


def test_a_full_disk_at_a_later_start_does_no_damage(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        make(disk)
        filler = fill(disk)
        with pytest.raises(StoreError, match="space"):
            make(disk, "never written")
        filler.unlink()
        with closing(sqlite.connect(disk)) as connection:
            assert fact(connection) == "kept"


def test_a_reader_creates_no_database(state_dir: Path) -> None:
    assert sqlite.connect_readonly(state_dir) is None
    assert not state_dir.exists()


def test_a_reader_cannot_write(state_dir: Path) -> None:
    make(state_dir)
    reader = sqlite.connect_readonly(state_dir)
    assert reader is not None
    with closing(reader), pytest.raises(sqlite3.OperationalError):
        put_fact(reader, "changed")


def test_a_reader_sees_what_a_killed_writer_committed(state_dir: Path, tmp_path: Path) -> None:
    with closing(sqlite.connect(state_dir)) as connection:
        put_fact(connection, "in the log only")
        left = tmp_path / "left"
        left.mkdir()
        for name, content in snapshot(state_dir).items():
            (left / name).write_bytes(content)
    reader = sqlite.connect_readonly(left)
    assert reader is not None
    with closing(reader):
        assert fact(reader) == "in the log only"


LATER = (
    *sqlite.MIGRATIONS,
    ("ALTER TABLE state ADD COLUMN at REAL", "UPDATE state SET at = 1"),
)


def test_an_older_database_is_migrated(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(state_dir)
    monkeypatch.setattr(sqlite, "MIGRATIONS", LATER)
    monkeypatch.setattr(sqlite, "VERSION", len(LATER))
    with pytest.raises(StoreError, match="older release"):
        sqlite.connect_readonly(state_dir)
    with closing(sqlite.connect(state_dir)) as connection:
        assert connection.execute("SELECT body, at FROM state").fetchall() == [("kept", 1.0)]
        assert connection.execute("PRAGMA user_version").fetchone() == (len(LATER),)


def test_a_migration_that_fails_leaves_the_older_database(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(state_dir)
    broken = (*LATER, ("CREATE TABLE extra (x)", "INSERT INTO missing VALUES (1)"))
    monkeypatch.setattr(sqlite, "MIGRATIONS", broken)
    monkeypatch.setattr(sqlite, "VERSION", len(broken))
    with pytest.raises(StoreError):
        sqlite.connect(state_dir)
    with closing(sqlite3.connect(state_dir / sqlite.FILE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(LATER),)
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    assert "extra" not in names


def put_ports(connection: sqlite3.Connection, name: str, ports: str) -> None:
    body = f'{{"session_key": "k", "ports": {ports}}}'
    connection.execute("INSERT INTO state VALUES ('identity', ?, ?)", (name, body))


def test_the_database_itself_leases_no_port_twice(state_dir: Path) -> None:
    with closing(sqlite.connect(state_dir)) as connection:
        put_ports(connection, "alice", '{"80": 30000}')
        with pytest.raises(sqlite3.IntegrityError):
            put_ports(connection, "bob", '{"80": 30000}')
        with pytest.raises(sqlite3.IntegrityError):
            put_ports(connection, "bob", '{"80": 30001, "81": 30001}')
        connection.execute("DELETE FROM state WHERE key = 'alice'")
        put_ports(connection, "bob", '{"80": 30000}')
