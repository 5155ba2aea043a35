"""Books in a PostgreSQL database, for several servers on several machines. Needs the extra ``postgres``.

The same rows and sums as in :mod:`finback.meter.sqlite`. A server marks its rows with a run of its own and holds an
advisory lock on it for as long as its session lives; who starts closes the rows of runs that nobody holds. A session
that was lost is opened again, with the lock, before the next write.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from finback.errors import ConfigError, LedgerError
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
    run bigint NOT NULL,
    id text PRIMARY KEY,
    key_id text NOT NULL,
    model text NOT NULL,
    route text NOT NULL,
    arrived_ms bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cost bigint NOT NULL,
    first_token_ms bigint,
    ended_ms bigint,
    finish_reason text,
    status integer
);
CREATE INDEX IF NOT EXISTS open_requests ON requests (run) WHERE ended_ms IS NULL;
CREATE TABLE IF NOT EXISTS totals (
    key_id text NOT NULL,
    day text NOT NULL,
    model text NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    reasoning_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cost bigint NOT NULL,
    PRIMARY KEY (key_id, day, model)
);
"""
_PUT = f"""
    INSERT INTO requests (run, {", ".join(ENTRY_COLUMNS)}) VALUES ({", ".join(["%s"] * (len(ENTRY_COLUMNS) + 1))})
    ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in ENTRY_COLUMNS)}
    WHERE requests.ended_ms IS NULL
"""
_ADD = f"""
    INSERT INTO totals VALUES ({", ".join(["%s"] * 9)})
    ON CONFLICT (key_id, day, model)
    DO UPDATE SET {", ".join(f"{name} = totals.{name} + excluded.{name}" for name in Sums._fields)}
"""
_SUMS = ", ".join(f"sum({name})::bigint" for name in Sums._fields)
_START = 0x66696E6261636B  # the lock under which servers start one after the other
WAIT_S = 5  # for a connection, and for an answer


class PostgresBooks:
    """See Books. ``write`` is for one thread, ``spent`` and the others for any, one at a time."""

    def __init__(self, dsn: str) -> None:
        """``dsn``: as PostgreSQL's own programs take it, postgresql://user@host/database for one."""
        try:
            import psycopg
        except ImportError:
            raise ConfigError("a ledger in PostgreSQL needs psycopg", hint="pip install 'finback[postgres]'") from None
        self._psycopg = psycopg
        self._dsn = dsn
        self._run = secrets.randbits(62)
        self._reading = threading.Lock()
        try:
            self._writer, self._reader = self._open_writer(), self._connect()
            with self._writer.transaction():
                self._writer.execute("SELECT pg_advisory_xact_lock(%s)", (_START,))
                self._writer.execute(_SCHEMA)
                self._close_lost()
        except psycopg.Error as error:
            raise LedgerError(f"cannot use the ledger in PostgreSQL: {error}") from None  # its cause may show the DSN

    def write(self, entries: Sequence[Entry]) -> None:
        """See Books."""
        if self._writer.closed:
            self._writer = self._open_writer()
        with self._writer.transaction():
            for entry in entries:
                self._put(entry)

    def spent(self, key_id: str, day: str) -> Spent:
        """See Books."""
        query = (
            "SELECT coalesce(sum(prompt_tokens + output_tokens) FILTER (WHERE day = %s), 0)::bigint, "
            "coalesce(sum(cost), 0)::bigint FROM totals WHERE key_id = %s"
        )
        [row] = self._read(query, (day, key_id))
        return Spent(*row)

    def usage(self, by: Grouping, *, key_id: str | None, since: str) -> dict[str, Sums]:
        """See Books."""
        group = GROUP_COLUMNS[by]
        query = (
            f"SELECT {group}, {_SUMS} FROM totals WHERE day >= %s AND (%s::text IS NULL OR key_id = %s) "
            f'GROUP BY {group} ORDER BY {group} COLLATE "C"'
        )
        return {row[0]: Sums(*row[1:]) for row in self._read(query, (since, key_id, key_id))}

    def check_integrity(self) -> None:
        """Raise LedgerError unless the sums are those of the rows."""
        day = "to_char(to_timestamp(arrived_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
        summed = ", ".join(f"sum({name})::bigint" for name in SUMMED_COLUMNS)
        query = (
            f"WITH counted AS (SELECT key_id, {day}, model, count(*), {summed} FROM requests "
            "WHERE ended_ms IS NOT NULL GROUP BY 1, 2, 3) "
            "(TABLE counted EXCEPT TABLE totals) UNION ALL (TABLE totals EXCEPT TABLE counted)"
        )
        wrong = self._read(query, ())
        if wrong:
            raise LedgerError(f"in the ledger the sums differ from the rows: {wrong[:4]}")

    def close(self) -> None:
        """See Books."""
        self._writer.close()
        self._reader.close()

    def _put(self, entry: Entry) -> None:
        changed = self._writer.execute(_PUT, (self._run, *astuple(entry))).rowcount
        if changed and entry.ended_ms is not None:
            counts = (getattr(entry, name) for name in SUMMED_COLUMNS)
            self._writer.execute(_ADD, (entry.key_id, day_of(entry.arrived_ms), entry.model, 1, *counts))

    def _close_lost(self) -> None:
        """Close open rows of runs whose session is gone. Their answers' lengths are not known."""
        runs = self._writer.execute("SELECT DISTINCT run FROM requests WHERE ended_ms IS NULL").fetchall()
        for (run,) in runs:
            [dead] = self._writer.execute("SELECT pg_try_advisory_xact_lock(%s)", (run,)).fetchone() or (False,)
            if dead:
                query = f"SELECT {', '.join(ENTRY_COLUMNS)} FROM requests WHERE run = %s AND ended_ms IS NULL"
                for row in self._writer.execute(query, (run,)).fetchall():
                    values = dict(zip(ENTRY_COLUMNS, row, strict=True))
                    self._put(Entry(**values | {"ended_ms": now_ms(), "finish_reason": "lost", "status": 500}))

    def _read(self, query: str, values: Sequence[Any]) -> list[Any]:
        """Rows of a query; with a fresh session where the old one was lost."""
        with self._reading:
            try:
                return list(self._reader.execute(query, values).fetchall())
            except self._psycopg.OperationalError:
                pass
            try:
                self._reader = self._connect()
                return list(self._reader.execute(query, values).fetchall())
            except self._psycopg.Error as error:
                raise LedgerError(f"the ledger cannot be read: {error}") from None

    def _open_writer(self) -> Any:
        connection = self._connect()
        connection.execute("SET synchronous_commit = on")
        connection.execute("SELECT pg_advisory_lock(%s)", (self._run,))
        return connection

    def _connect(self) -> Any:
        options = f"-c statement_timeout={WAIT_S * 1000}"
        return self._psycopg.connect(self._dsn, autocommit=True, connect_timeout=WAIT_S, options=options)
