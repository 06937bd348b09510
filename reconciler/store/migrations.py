"""The database's shape, as the steps that lead to it. A released step is never changed.

Times are observed seconds (``observed.py``), except ``record.created_at`` and ``ledger.at``, which
are for display: seconds since the epoch. A NULL ``retain`` means indefinitely. Ports have rows of
their own, so that the database itself refuses to lease one twice.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE record (
            name TEXT PRIMARY KEY NOT NULL,
            spec_name TEXT NOT NULL,
            state TEXT NOT NULL,
            spec_id TEXT NOT NULL REFERENCES spec (id) DEFERRABLE INITIALLY DEFERRED,
            created_at REAL NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX record_by_spec ON record (spec_id)",
        # What many records are made from stands here once.
        "CREATE TABLE spec (id TEXT PRIMARY KEY NOT NULL, body TEXT NOT NULL)",
        """CREATE TRIGGER spec_unused AFTER DELETE ON record
            WHEN NOT EXISTS (SELECT 1 FROM record WHERE spec_id = old.spec_id)
            BEGIN DELETE FROM spec WHERE id = old.spec_id; END""",
        """CREATE TABLE tombstone (
            name TEXT PRIMARY KEY NOT NULL,
            retain REAL
        ) WITHOUT ROWID""",
        """CREATE TABLE identity (
            name TEXT PRIMARY KEY NOT NULL,
            session_key TEXT NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE lease (
            host_port INTEGER PRIMARY KEY NOT NULL,
            sandbox TEXT NOT NULL REFERENCES identity (name) ON DELETE CASCADE,
            container_port INTEGER NOT NULL,
            UNIQUE (sandbox, container_port)
        )""",
        """CREATE TABLE memory (
            name TEXT PRIMARY KEY NOT NULL,
            body TEXT NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE orphan_container (
            id TEXT PRIMARY KEY NOT NULL,
            sandbox TEXT NOT NULL,
            since REAL NOT NULL,
            retain REAL,
            confirmed INTEGER NOT NULL,
            lost INTEGER NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE orphan_volume (
            id TEXT PRIMARY KEY NOT NULL,
            sandbox TEXT NOT NULL,
            since REAL NOT NULL,
            retain REAL,
            confirmed INTEGER NOT NULL,
            lost INTEGER NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE claim (
            sandbox TEXT PRIMARY KEY NOT NULL,
            body TEXT NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE fact (
            name TEXT PRIMARY KEY NOT NULL,
            value TEXT NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE ledger (
            id INTEGER PRIMARY KEY NOT NULL,
            at REAL NOT NULL,
            event TEXT NOT NULL,
            sandbox TEXT,
            cause TEXT NOT NULL,
            data TEXT NOT NULL
        )""",
        "CREATE INDEX ledger_by_sandbox ON ledger (sandbox, id)",
    ),
    (
        """CREATE TABLE image (
            id TEXT PRIMARY KEY NOT NULL,
            reference TEXT NOT NULL,
            pulled_at REAL NOT NULL,
            used_at REAL NOT NULL
        ) WITHOUT ROWID""",
    ),
)
