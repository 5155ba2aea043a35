"""The server's promises over many repetitions, with a tiny model: minutes, by hand.

python -m tests.server.stress kills --count 200        # kill -9 under load: nothing booked is lost or doubled
python -m tests.server.stress ledger --count 10000     # the books equal what clients saw
python -m tests.server.stress leavers --count 1000     # hang-ups anywhere: work stops, blocks come back
python -m tests.server.stress fuzz --count 50000       # whatever is asked: no 5xx, no hang
python -m tests.server.stress overload --seconds 60    # ten times too much: refused at once, throughput stays
python -m tests.server.stress soak --seconds 600       # memory, descriptors and threads stay flat
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil
from tests.server.fuzz import Generator, counted, own
from tests.server.load import Seen, mixed_load
from tests.server.test_http import until
from tests.server.test_ledger import all_closed, check_seen, process, rows

from finback.meter.sqlite import SqliteBooks
from finback.server import load
from finback.server.keys import KeyStore, Limits
from finback.server.load import Ask, Target

AT_ONCE = 16


def kills(home: Path, count: int) -> str:
    """Kill a loaded server again and again, and look at the books each time."""
    rng = random.Random(1)
    told = 0
    for run in range(count):
        with process(home) as (server, url):

            async def until_killed(server: Any = server, url: str = url, run: int = run) -> list[Seen]:
                traffic = asyncio.create_task(mixed_load(url, requests=2000, at_once=AT_ONCE, seed=run, leaving=0.1))
                await asyncio.sleep(0.1 + rng.random())
                server.send_signal(signal.SIGKILL)
                return await traffic

            seen = asyncio.run(until_killed())
        books = SqliteBooks(home)
        books.check_integrity()
        books.close()
        assert all_closed(home)
        check_seen(seen, rows(home))
        told += sum(one.acknowledged for one in seen)
    lost = sum(row["finish_reason"] == "lost" for row in rows(home).values())
    return f"{count} kills, {told} answers told, all in the books once; {lost} rows closed as lost"


def ledger(home: Path, count: int) -> str:
    """Mixed requests, some of which leave."""
    with process(home, piece_s=0.0) as (server, url):
        seen = asyncio.run(mixed_load(url, requests=count, at_once=AT_ONCE, seed=7, leaving=0.3))
        server.terminate()
        assert server.wait(60) == 0
    booked = rows(home)
    check_seen(seen, booked)
    assert all_closed(home)
    books = SqliteBooks(home)
    books.check_integrity()
    books.close()
    told = [one for one in seen if one.acknowledged]
    for field, column in (("prompt_tokens", "prompt_tokens"), ("completion_tokens", "output_tokens")):
        clients = sum(one.usage[field] for one in told if one.usage)
        assert clients == sum(booked[one.id][column] for one in told)
    aborted = sum(row["status"] == 499 for row in booked.values())
    return f"{count} requests: {len(told)} told and equal to the books, {aborted} aborted, {len(booked)} rows"


def leavers(home: Path, count: int) -> str:
    """Clients that all leave; the engine must come to rest with all its blocks."""
    with process(home, piece_s=0.001) as (server, url):
        asyncio.run(mixed_load(url, requests=count, at_once=AT_ONCE, seed=3, leaving=1.0))
        assert until(lambda: at_rest(url), 10)
        assert all_closed(home)
        server.terminate()
        assert server.wait(30) == 0
    aborted = sum(row["status"] == 499 for row in rows(home).values())
    return f"{count} leavers, {aborted} aborted rows, all closed; the engine is at rest"


def at_rest(url: str, headers: dict[str, str] | None = None) -> bool:
    """Whether nothing runs and every block of the cache is free or kept for later."""
    status = httpx2.get(f"{url}/v1/status", headers=headers).json()
    idle = status["running"] == status["waiting"] == 0
    return bool(idle and status["blocks_free"] + status["blocks_cached"] == status["blocks_total"])


def fuzz(home: Path, count: int) -> str:
    """Requests that nobody means: whatever comes, the server answers and goes on."""
    store = KeyStore(home)
    good, admin = store.create("good")[1], store.create("admin", admin=True)[1]
    poor = store.create("poor", Limits(requests_per_minute=60, tokens_per_day=5000))[1]
    revoked, revoked_text = store.create("revoked")
    store.revoke(revoked)
    keys = [good] * 8 + [admin, poor, revoked_text, good[:-1] + "x", "", "' OR ''='"]
    boss = {"authorization": f"Bearer {admin}"}
    with process(home, piece_s=0.0) as (server, url), httpx2.Client(base_url=url, headers=boss) as client:
        document = client.get("/openapi.json").json()
        seen = asyncio.run(own(url, Generator(document, keys, seed=5), count))
        assert until(lambda: at_rest(url, boss), 30)
        exposition = client.get("/metrics").text
        statuses = counted(exposition)
        assert max(statuses) < 500, statuses
        assert "finback_engine_failures_total 0" in exposition
        assert client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1}).status_code == 200
        server.terminate()
        assert server.wait(30) == 0
    assert all_closed(home)
    return f"{statuses.total()} answered: {dict(sorted(statuses.items()))}; clients saw {dict(seen)}"


def overload(home: Path, seconds: int) -> str:
    """Find the peak with a closed loop, then offer ten times that for a while."""
    size = {"prompt_tokens": 20, "output_tokens": 100}  # few and long: the clients need the processor, too
    with process(home, piece_s=0.05) as (_, url):
        target = Target(f"{url}/v1", "tiny")

        def measure(asks: list[Ask], streams: int | None) -> tuple[dict[str, Any], list[load.Felt]]:
            felt = asyncio.run(load.run(target, asks, speed=1.0, streams=streams, seed=1))
            return load.summary(felt, slo_ttft_s=5, slo_tpot_s=1), felt

        peak, _ = measure([Ask(0.0, **size)] * 128, 64)
        rate = 10 * peak["requests_per_s"]
        found, felt = measure(load.poisson(int(rate * seconds), rate, seed=1, **size), None)
    refusals = sorted(one.last_s - one.sent_s for one in felt if one.status == 429)
    assert set(found["statuses"]) <= {"200", "429"}, found
    p95 = refusals[len(refusals) * 95 // 100] if refusals else 0.0
    share = found["output_tokens_per_s"] / peak["output_tokens_per_s"]
    return f"{found['statuses']}; refused within {p95 * 1000:.0f} ms (p95); throughput {share:.0%} of its peak"


def soak(home: Path, seconds: int) -> str:
    """Rounds of mixed load. The first half may still fill caches; over the second one nothing grows."""
    figures = []
    with process(home, piece_s=0.001) as (server, url):
        watched = psutil.Process(server.pid)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            asyncio.run(mixed_load(url, requests=400, at_once=AT_ONCE, seed=len(figures), leaving=0.2))
            time.sleep(0.5)  # those who left are noticed
            figures.append((watched.memory_info().rss >> 20, watched.num_fds(), watched.num_threads()))
    shown = [figures[i * (len(figures) - 1) // 10] for i in range(11)]
    middle, last = figures[len(figures) // 2], figures[-1]
    assert last[0] <= 1.05 * middle[0], shown
    assert last[1:] == middle[1:], shown
    return f"MiB, descriptors, threads over {len(figures)} rounds: {shown}"


def main() -> None:
    """Run one of the promises and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("kills", "ledger", "leavers", "fuzz", "overload", "soak"))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args()
    amount = given.seconds if given.what in ("overload", "soak") else given.count
    with tempfile.TemporaryDirectory() as folder:
        print(globals()[given.what](Path(folder), amount))


if __name__ == "__main__":
    main()
