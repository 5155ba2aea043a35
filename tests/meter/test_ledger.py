"""The ledger: rows opened and closed once, sums, budgets, dead servers, full disks, and kill -9 of a writer."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from finback.errors import LedgerError
from finback.meter.ledger import Entry, Ledger, Spent, Sums, day_of, now_ms
from finback.meter.sqlite import SqliteBooks


def opened(name: str, **values: object) -> Entry:
    return Entry(name, "key", "model", "/v1/completions", now_ms(), prompt_tokens=10, **values)  # type: ignore[arg-type]


def closed(entry: Entry, output_tokens: int = 5, cost: int = 7) -> Entry:
    changes = {"output_tokens": output_tokens, "cost": cost, "finish_reason": "stop", "status": 200}
    return replace(entry, ended_ms=now_ms(), **changes)  # type: ignore[arg-type]


def rows(home: Path, where: str = "true") -> list[tuple[object, ...]]:
    connection = sqlite3.connect(home / "ledger.sqlite")
    found = connection.execute(f"SELECT * FROM requests WHERE {where} ORDER BY rowid").fetchall()
    connection.close()
    return found


def test_a_row_is_opened_and_closed(tmp_path: Path) -> None:
    books = SqliteBooks(tmp_path)
    ledger = Ledger(books)
    entry = opened("a")
    ledger.put(entry).result()
    assert rows(tmp_path)[0][1:] == astuple(entry)
    assert ledger.spent("key") == Spent(0, 0)
    ended = closed(entry)
    ledger.put(ended).result()
    assert [row[1:] for row in rows(tmp_path)] == [astuple(ended)]
    assert ledger.spent("key") == Spent(15, 7)
    books.check_integrity()
    ledger.close()


def test_closing_twice_counts_once(tmp_path: Path) -> None:
    books = SqliteBooks(tmp_path)
    entry = opened("a")
    for again in (entry, closed(entry), closed(entry, 9), entry):
        books.write([again])
    books.write([closed(entry, 9), closed(opened("b")), closed(opened("b"))])
    assert books.usage("key", key_id=None, since="") == {"key": Sums(2, 20, 0, 0, 10, 14)}
    books.check_integrity()
    books.close()


def test_a_row_that_was_never_opened_can_be_closed(tmp_path: Path) -> None:
    books = SqliteBooks(tmp_path)
    books.write([closed(opened("a"))])
    assert books.spent("key", day_of(now_ms())) == Spent(15, 7)
    books.close()


def test_sums_are_those_of_the_rows(tmp_path: Path) -> None:
    rng = random.Random(2)
    ledger = Ledger(SqliteBooks(tmp_path))
    expected: dict[str, list[int]] = {}
    day_ms = 86_400_000
    for number in range(500):
        key, ago = rng.choice("abc"), rng.randrange(4)
        prompt, output = rng.randrange(100), rng.randrange(100)
        arrived = now_ms() - ago * day_ms
        entry = Entry(
            str(number), key, "m", "/", arrived, prompt, prompt // 2, output // 2, output, prompt * 10**9, ended_ms=1
        )
        ledger.put(entry)
        if ago < 2:
            sums = expected.setdefault(key, [0] * 6)
            for at, value in enumerate((1, prompt, prompt // 2, output // 2, output, prompt * 10**9)):
                sums[at] += value
    ledger.put(opened("open")).result()
    assert ledger.usage("key", days=2) == {key: Sums(*sums) for key, sums in expected.items()}
    assert set(ledger.usage("day")) == {day_of(now_ms() - ago * day_ms) for ago in range(4)}
    assert list(ledger.usage("model", key_id="a")) == ["m"]
    ledger.close()


def test_many_threads_and_one_writer(tmp_path: Path) -> None:
    books = SqliteBooks(tmp_path)
    ledger = Ledger(books)
    with ThreadPoolExecutor(8) as pool:
        futures = [
            f
            for part in pool.map(lambda n: [ledger.put(closed(opened(f"{n}-{i}"))) for i in range(50)], range(8))
            for f in part
        ]
    for future in futures:
        future.result(10)
    assert books.usage("key", key_id=None, since="")["key"].requests == 400
    ledger.close()
    assert len(rows(tmp_path)) == 400


def test_what_a_dead_server_left_open_is_closed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    living = SqliteBooks(tmp_path)
    living.write([opened("of the living")])
    script = (
        "import os, sys; from pathlib import Path; from tests.meter.test_ledger import *\n"
        "books = SqliteBooks(Path(sys.argv[1]))\n"
        "books.write([opened('of the dead'), closed(opened('booked'))]); os._exit(9)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, env=environment, timeout=60)
    assert len(list(tmp_path.glob("*.lock"))) == 2
    later = SqliteBooks(tmp_path)
    assert [(row[1], row[-2]) for row in rows(tmp_path, "ended_ms IS NOT NULL")] == [
        ("of the dead", "lost"),
        ("booked", "stop"),
    ]
    assert [row[1] for row in rows(tmp_path, "ended_ms IS NULL")] == ["of the living"]
    living.write([closed(opened("of the living"))])
    later.check_integrity()
    assert later.usage("key", key_id=None, since="")["key"] == Sums(3, 30, 0, 0, 10, 14)
    for books in (living, later):
        books.close()
    assert list(tmp_path.glob("*.lock")) == []


def test_a_full_disk_fails_the_row_and_not_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finback.meter.ledger.PAUSE_S", 0.001)
    books = SqliteBooks(tmp_path)
    ledger = Ledger(books)
    ledger.put(closed(opened("before"))).result()
    pages = books._writer.execute("PRAGMA page_count").fetchone()[0]
    books._writer.execute(f"PRAGMA max_page_count = {pages}")
    failed = [ledger.put(closed(replace(opened(f"full {n}"), model="x" * 2000))) for n in range(30)]
    assert sum(isinstance(future.exception(10), LedgerError) for future in failed) > 0
    books._writer.execute("PRAGMA max_page_count = 1000000")
    ledger.put(closed(opened("after"))).result()
    books.check_integrity()
    booked = {row[1] for row in rows(tmp_path)}
    assert {"before", "after"} <= booked
    assert all((future.exception() is None) == (f"full {n}" in booked) for n, future in enumerate(failed))
    ledger.close()


def test_a_ledger_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite"):
        SqliteBooks(tmp_path)


def test_wrong_sums_are_noticed(tmp_path: Path) -> None:
    books = SqliteBooks(tmp_path)
    books.write([closed(opened("a"))])
    books._writer.execute("UPDATE totals SET output_tokens = output_tokens + 1")
    with pytest.raises(LedgerError, match="sums"):
        books.check_integrity()
    books.close()


def test_a_killed_writer_loses_nothing_that_it_said_was_written(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.meter.test_ledger import *\n"
        "ledger = Ledger(SqliteBooks(Path(sys.argv[1])))\n"
        "for n in range(10**6):\n"
        "    name = sys.argv[2] + str(n); ledger.put(opened(name)); ledger.put(closed(opened(name))).result()\n"
        "    print(name, flush=True)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    for run in range(3):
        command = [sys.executable, "-c", script, str(tmp_path), f"run{run}-"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
            assert process.stdout
            told = [process.stdout.readline().strip() for _ in range(20 + 13 * run)]
            process.kill()
            told += process.stdout.read().split("\n")[:-1]
        books = SqliteBooks(tmp_path)
        books.check_integrity()
        books.close()
        written = [str(row[1]) for row in rows(tmp_path)]
        assert len(set(written)) == len(written)
        assert {name for name in told if name} <= set(written)
        assert rows(tmp_path, "ended_ms IS NULL") == []
