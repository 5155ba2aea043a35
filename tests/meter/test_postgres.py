"""Books in PostgreSQL, on a real server: skipped unless TEST_POSTGRES_DSN names one where databases can be made."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from finback.errors import ConfigError, LedgerError
from finback.meter.ledger import Ledger, Spent, Sums, day_of, now_ms
from finback.meter.sqlite import SqliteBooks
from tests.meter.test_ledger import closed, opened

DSN = os.environ.get("TEST_POSTGRES_DSN", "")
real = pytest.mark.skipif(not DSN, reason="needs a PostgreSQL server")


@pytest.fixture
def dsn() -> Iterator[str]:
    """A database of the test's own."""
    psycopg = pytest.importorskip("psycopg")
    name = f"finback_test_{os.getpid()}_{random.randrange(10**9)}"
    with psycopg.connect(DSN, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield psycopg.conninfo.make_conninfo(DSN, dbname=name)
    with psycopg.connect(DSN, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@real
def test_it_keeps_the_same_books_as_sqlite(dsn: str, tmp_path: Path) -> None:
    from finback.meter.postgres import PostgresBooks

    rng = random.Random(4)
    postgres, sqlite = PostgresBooks(dsn), SqliteBooks(tmp_path)
    entries = []
    for number in range(200):
        ago = rng.randrange(3) * 86_400_000
        entry = replace(opened(str(number)), key_id=rng.choice("aB_"), arrived_ms=now_ms() - ago)
        entries += [entry, closed(entry, rng.randrange(50), rng.randrange(10**15))]
    entries += [closed(entries[0], 99), opened("open")]
    for books in (postgres, sqlite):
        books.write(entries[:100])
        books.write(entries[100:])
        books.check_integrity()
    today = day_of(now_ms())
    for since in ("", today):
        for by in ("key", "day", "model"):
            for key_id in (None, "a"):
                found = postgres.usage(by, key_id=key_id, since=since)  # type: ignore[arg-type]
                assert found == sqlite.usage(by, key_id=key_id, since=since)  # type: ignore[arg-type]
    assert [postgres.spent(key, today) for key in "aBx"] == [sqlite.spent(key, today) for key in "aBx"]
    postgres.close()
    sqlite.close()


@real
def test_dead_servers_rows_are_closed_and_living_ones_are_not(dsn: str) -> None:
    from finback.meter.postgres import PostgresBooks

    living = PostgresBooks(dsn)
    living.write([opened("of the living")])
    script = (
        "import os, sys; from tests.meter.test_ledger import *; from finback.meter.postgres import PostgresBooks\n"
        "PostgresBooks(sys.argv[1]).write([opened('of the dead')]); os._exit(9)"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script, dsn], check=False, env=environment, timeout=60).returncode == 9
    later = PostgresBooks(dsn)
    assert later.usage("key", key_id=None, since="")["key"] == Sums(1, 10, 0, 0, 0, 0)
    living.write([closed(opened("of the living"))])
    assert later.usage("key", key_id=None, since="")["key"] == Sums(2, 20, 0, 0, 5, 7)
    later.check_integrity()
    living.close()
    later.close()


@real
def test_a_lost_session_is_opened_again(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    from finback.meter.postgres import PostgresBooks

    monkeypatch.setattr("finback.meter.ledger.PAUSE_S", 0.05)
    ledger = Ledger(PostgresBooks(dsn))
    ledger.put(closed(opened("before"))).result(10)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert ledger.spent("key") == Spent(15, 7)
    ledger.put(closed(opened("after"))).result(10)
    assert ledger.spent("key") == Spent(30, 14)
    ledger.close()


@real
def test_wrong_sums_are_noticed(dsn: str) -> None:
    from finback.meter.postgres import PostgresBooks

    books = PostgresBooks(dsn)
    books.write([closed(opened("a"))])
    books._writer.execute("UPDATE totals SET cost = cost + 1")
    with pytest.raises(LedgerError, match="sums"):
        books.check_integrity()
    books.close()


def test_a_database_that_is_not_there_is_reported_without_its_password() -> None:
    pytest.importorskip("psycopg")
    from finback.meter.postgres import PostgresBooks

    with pytest.raises(LedgerError) as caught:
        PostgresBooks("postgresql://somebody:xyzzy@127.0.0.1:1/none")
    assert "xyzzy" not in str(caught.value)


def test_without_psycopg_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from finback.meter.postgres import PostgresBooks

    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError) as caught:
        PostgresBooks("postgresql://x/y")
    assert "finback[postgres]" in str(caught.value.hint)
