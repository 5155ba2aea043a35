"""Books in an SQLite file below the home folder: WAL mode, every commit waits for the disk.

Beside the rows stand their sums by key, day and model, kept by the same transactions, so that a budget is checked by
reading one row and not a day of them. Several servers may share one file. Each marks its rows with a run of its own
and holds a lock for as long as it lives; who starts closes the rows that dead runs have left open.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple
from pathlib import Path

from finback.errors import LedgerError
from finback.meter.ledger import (
    ENTRY_COLUMNS,
    GROUP_COLUMNS,
    SUMMED_COLUMNS,
    Entry,
    Grouping,
    Spent,
    Sums,
    day_of,
    now_ms,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    run TEXT NOT NULL,
    id TEXT PRIMARY KEY,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    route TEXT NOT NULL,
    arrived_ms INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    first_token_ms INTEGER,
    ended_ms INTEGER,
    finish_reason TEXT,
    status INTEGER
);
CREATE INDEX IF NOT EXISTS open_requests ON requests (run) WHERE ended_ms IS NULL;
CREATE TABLE IF NOT EXISTS totals (
    key_id TEXT NOT NULL,
    day TEXT NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    PRIMARY KEY (key_id, day, model)
);
"""
_PUT = f"""
    INSERT INTO requests (run, {", ".join(ENTRY_COLUMNS)}) VALUES ({", ".join("?" * (len(ENTRY_COLUMNS) + 1))})
    ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in ENTRY_COLUMNS)}
    WHERE ended_ms IS NULL
"""
_ADD = f"""
    INSERT INTO totals VALUES ({", ".join("?" * 9)})
    ON CONFLICT DO UPDATE SET {", ".join(f"{name} = {name} + excluded.{name}" for name in Sums._fields)}
"""
_SUMS = ", ".join(f"sum({name})" for name in Sums._fields)


class SqliteBooks:
    """See Books. ``write`` is for one thread, ``spent`` for one other, ``usage`` and ``check_integrity`` for any."""

    def __init__(self, home: Path) -> None:
        """Opens or makes ``ledger.sqlite`` below ``home``, and closes what dead servers have left open in it."""
        self._path = home / "ledger.sqlite"
        self._run = secrets.token_hex(8)
        home.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_CREAT, 0o600))
        try:
            self._writer = _connect(self._path)
            self._writer.executescript(_SCHEMA)
            self._reader = _connect(self._path)
            with _transaction(self._writer):  # servers that start together take turns here
                self._lock = _lock(self._lock_path(self._run))
                self._close_lost()
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"cannot use the ledger {self._path}: {error}") from error

    def write(self, entries: Sequence[Entry]) -> None:
        """See Books."""
        with _transaction(self._writer):
            for entry in entries:
                self._put(entry)

    def spent(self, key_id: str, day: str) -> Spent:
        """See Books."""
        query = (
            "SELECT ifnull(sum(CASE day WHEN ? THEN prompt_tokens + output_tokens END), 0), ifnull(sum(cost), 0) "
            "FROM totals WHERE key_id = ?"
        )
        return Spent(*self._reader.execute(query, (day, key_id)).fetchone())

    def usage(self, by: Grouping, *, key_id: str | None, since: str) -> dict[str, Sums]:
        """See Books."""
        query = (
            f"SELECT {GROUP_COLUMNS[by]}, {_SUMS} FROM totals WHERE day >= ? AND (? IS NULL OR key_id = ?) "
            f"GROUP BY {GROUP_COLUMNS[by]} ORDER BY {GROUP_COLUMNS[by]}"
        )
        with closing(_connect(self._path)) as connection:
            return {row[0]: Sums(*row[1:]) for row in connection.execute(query, (since, key_id, key_id))}

    def check_integrity(self) -> None:
        """Raise LedgerError unless the file is sound and the sums are those of the rows."""
        day = "strftime('%Y-%m-%d', arrived_ms / 1000, 'unixepoch')"
        summed = ", ".join(f"sum({name})" for name in SUMMED_COLUMNS)
        counted = (
            f"SELECT key_id, {day}, model, count(*), {summed} FROM requests WHERE ended_ms IS NOT NULL GROUP BY 1, 2, 3"
        )
        with closing(_connect(self._path)) as connection, _transaction(connection):
            [sound] = connection.execute("PRAGMA integrity_check").fetchone()
            rows = set(connection.execute(counted))
            totals = set(connection.execute("SELECT * FROM totals"))
        if sound != "ok":
            raise LedgerError(f"{self._path} is damaged: {sound}")
        if rows != totals:
            raise LedgerError(f"in {self._path} the sums differ from the rows: {sorted(rows ^ totals)[:4]}")

    def close(self) -> None:
        """See Books."""
        self._writer.close()
        self._reader.close()
        self._lock_path(self._run).unlink(missing_ok=True)
        os.close(self._lock)

    def _put(self, entry: Entry) -> None:
        changed = self._writer.execute(_PUT, (self._run, *astuple(entry))).rowcount
        if changed and entry.ended_ms is not None:
            counts = (getattr(entry, name) for name in SUMMED_COLUMNS)
            self._writer.execute(_ADD, (entry.key_id, day_of(entry.arrived_ms), entry.model, 1, *counts))

    def _close_lost(self) -> None:
        """Close open rows of runs that nobody holds the lock of any more. Their answers' lengths are not known."""
        runs = [run for (run,) in self._writer.execute("SELECT DISTINCT run FROM requests WHERE ended_ms IS NULL")]
        for run in filter(self._is_dead, runs):
            query = f"SELECT {', '.join(ENTRY_COLUMNS)} FROM requests WHERE run = ? AND ended_ms IS NULL"
            for row in self._writer.execute(query, (run,)).fetchall():
                values = dict(zip(ENTRY_COLUMNS, row, strict=True))
                self._put(Entry(**values | {"ended_ms": now_ms(), "finish_reason": "lost", "status": 500}))

    def _is_dead(self, run: str) -> bool:
        path = self._lock_path(run)
        if path.exists():
            try:
                os.close(_lock(path))
            except BlockingIOError:
                return False
            path.unlink()
        return True

    def _lock_path(self, run: str) -> Path:
        return self._path.with_name(f"ledger-{run}.lock")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction around a block: committed at its end, rolled back when it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it already
            connection.execute("ROLLBACK")
        raise


def _lock(path: Path) -> int:
    """A descriptor that holds the lock on ``path``; BlockingIOError when somebody else does."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
