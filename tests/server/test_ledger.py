"""What clients saw against what is in the books: mixed requests, hang-ups, failures, budgets, kill -9, restarts."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.server.load import Seen, mixed_load
from tests.server.test_http import until

from finback.meter.sqlite import SqliteBooks
from finback.server.keys import KeyStore, Limits


def rows(home: Path) -> dict[str, dict[str, Any]]:
    """The ledger's rows by request id."""
    connection = sqlite3.connect(home / "ledger.sqlite")
    connection.row_factory = sqlite3.Row
    found = [dict(row) for row in connection.execute("SELECT * FROM requests")]
    connection.close()
    return {row["id"]: row for row in found}


def all_closed(home: Path) -> bool:
    return all(row["ended_ms"] is not None for row in rows(home).values())


def check_seen(seen: list[Seen], booked: dict[str, dict[str, Any]]) -> None:
    """Every answer whose end was told is in the books with the same counts."""
    for one in seen:
        if one.usage is None:
            continue
        row = booked[one.id]
        details = one.usage["completion_tokens_details"]
        told = (one.usage["prompt_tokens"], one.usage["prompt_cache_hit_tokens"], details["reasoning_tokens"])
        assert (row["prompt_tokens"], row["cached_tokens"], row["reasoning_tokens"]) == told
        assert (row["output_tokens"], row["status"]) == (one.usage["completion_tokens"], 200)


def test_sums_equal_what_clients_saw(serve: Callable[..., Any]) -> None:
    running = serve(max_requests=16, blocks=256)
    seen = asyncio.run(mixed_load(running.url, requests=300, at_once=24, seed=1))
    assert until(lambda: all_closed(running.home) and not running.engine.has_work)
    booked = rows(running.home)
    check_seen(seen, booked)
    assert {one.status for one in seen} <= {0, 200}
    left = [booked[one.id] for one in seen if one.id and not one.acknowledged]
    assert left
    assert all(row["status"] in (200, 499) for row in left)
    for one in seen:  # who left has not seen more than is booked
        if one.id and not one.acknowledged:
            assert sum(map(len, one.texts.values())) <= booked[one.id]["output_tokens"]
    running.engine.check_integrity()
    usage = httpx2.get(f"{running.url}/v1/usage").json()
    assert usage["total"]["requests"] == len(booked)
    for name in ("prompt_tokens", "output_tokens", "cached_tokens"):
        assert usage["total"][name] == sum(row[name] for row in booked.values())


def test_a_hung_up_request_is_closed_with_what_was_computed(serve: Callable[..., Any]) -> None:
    running = serve()
    body = {"model": "tiny", "prompt": "go on", "max_tokens": 400, "stream": True}
    with httpx2.stream("POST", f"{running.url}/v1/completions", json=body) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number == 6:
                break
    assert until(lambda: bool(rows(running.home)) and all_closed(running.home))
    [row] = rows(running.home).values()
    assert (row["finish_reason"], row["status"]) == ("abort", 499)
    assert 3 <= row["output_tokens"] < 400
    assert row["arrived_ms"] <= row["first_token_ms"] <= row["ended_ms"]


def test_a_failed_request_is_closed(serve: Callable[..., Any], make_tiny_model: Callable[..., Any]) -> None:
    running = serve(make_tiny_model(poison=ord("!")))
    body = {"model": "tiny", "prompt": "boo!", "max_tokens": 3}
    response = httpx2.post(f"{running.url}/v1/completions", json=body)
    row = rows(running.home)[response.headers["x-request-id"]]
    assert (row["finish_reason"], row["status"], row["output_tokens"]) == ("error", 500, 0)


def test_no_text_is_kept(serve: Callable[..., Any], make_tiny_model: Callable[..., Any]) -> None:
    running = serve(make_tiny_model(script="secret answer"))
    body = {"model": "tiny", "prompt": "secret question", "max_tokens": 30, "user": "secret user"}
    assert "secret answer" in httpx2.post(f"{running.url}/v1/completions", json=body).text
    assert all(b"secret" not in path.read_bytes() for path in running.home.iterdir())


def test_a_ledger_that_fails_is_a_server_error(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finback.meter.ledger.PAUSE_S", 0.001)
    running = serve()
    monkeypatch.setattr(SqliteBooks, "write", lambda *_: 1 / 0)
    for stream in (False, True):
        body = {"model": "tiny", "prompt": "x", "max_tokens": 3, "stream": stream}
        response = httpx2.post(f"{running.url}/v1/completions", json=body)
        assert (response.status_code, "ledger" in response.text, "[DONE]" in response.text) == (
            200 if stream else 500,
            True,
            False,
        )


class Asker:
    """Somebody with a key."""

    def __init__(self, running: Any, **limits: int) -> None:
        self.running = running
        self.key, self.text = KeyStore(running.home).create("asker", Limits(**limits))
        self.client = httpx2.Client(base_url=running.url, headers={"authorization": f"Bearer {self.text}"})

    def ask(self, **fields: Any) -> httpx2.Response:
        body = {"model": "tiny", "prompt": "123456789", "max_tokens": 10} | fields  # ten tokens with BOS
        return self.client.post("/v1/completions", json=body)

    async def at_once(self, count: int) -> list[int]:
        """The statuses of so many requests in flight together."""
        body = {"model": "tiny", "prompt": "123456789", "max_tokens": 10}
        async with httpx2.AsyncClient(base_url=self.running.url, headers=self.client.headers) as client:
            replies = await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(count)))
        return [reply.status_code for reply in replies]

    def chat(self, **fields: Any) -> httpx2.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]} | fields
        return self.client.post("/v1/chat/completions", json=body)


def test_a_days_tokens_are_never_exceeded(serve: Callable[..., Any]) -> None:
    running = serve()
    asker = Asker(running, tokens_per_day=100)
    with asker.client:
        assert [asker.ask().status_code for _ in range(4)] == [200] * 4
        refused = asker.ask(max_tokens=11)
        assert refused.status_code == 429
        assert "21 tokens" in refused.json()["error"]["message"]
        assert asker.ask(prompt="x" * 600).status_code == 400, "what never fits is no matter of budgets"
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        assert asker.ask().status_code == 200
        assert asker.ask(max_tokens=1).status_code == 429
        usage = asker.client.get("/v1/usage").json()
        assert usage["tokens_today"] == 100
        assert usage["key"]["limits"]["tokens_per_day"] == 100


def test_an_open_answer_gets_what_is_left(serve: Callable[..., Any]) -> None:
    asker = Asker(serve(), tokens_per_day=50)
    with asker.client:
        reply = asker.chat().json()
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["total_tokens"] == 50
        assert asker.chat().status_code == 429


def test_many_at_the_last_tokens(serve: Callable[..., Any]) -> None:
    """A hundred requests at once, of which the budget has room for seven."""
    running = serve(max_requests=16)
    asker = Asker(running, tokens_per_day=7 * 20)
    with asker.client:
        statuses = asyncio.run(asker.at_once(100))
        assert sorted(statuses) == [200] * 7 + [429] * 93
        assert asker.client.get("/v1/usage").json()["tokens_today"] == 140


def test_many_at_the_last_cent(serve: Callable[..., Any]) -> None:
    running = serve(max_requests=16, price_input="1", price_output="2")
    asker = Asker(running, money=7 * 30 * 10**6 - 1)
    with asker.client:
        statuses = asyncio.run(asker.at_once(100))
        assert sorted(statuses) == [200] * 6 + [429] * 94
        assert asker.client.get("/v1/usage").json()["money_spent"] == "0.00018"


def test_money(serve: Callable[..., Any]) -> None:
    running = serve(price_input="1", price_output="2")  # for a million: a request below costs 30 millionths
    asker = Asker(running, money=100 * 10**6)
    with asker.client:
        assert [asker.ask().status_code for _ in range(3)] == [200] * 3
        refused = asker.ask()
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "insufficient_quota"
        assert refused.headers["x-should-retry"] == "false"
        assert asker.client.get("/v1/usage").json()["money_spent"] == "0.00009"
        assert asker.ask(prompt=[1, 2], max_tokens=4).status_code == 200
        assert asker.ask(max_tokens=1).status_code == 429


def test_a_money_limit_needs_prices(serve: Callable[..., Any]) -> None:
    asker = Asker(serve(), money=10**12)
    with asker.client:
        refused = asker.ask()
        assert refused.status_code == 403
        assert "prices" in refused.json()["error"]["message"]


def test_usage_of_others_is_for_admins(serve: Callable[..., Any]) -> None:
    running = serve()
    assert httpx2.get(f"{running.url}/v1/usage", params={"key": "nobody"}).status_code == 400
    asker = Asker(running)
    store = KeyStore(running.home)
    _, other = store.create("other")
    _, admin = store.create("boss", admin=True)

    def usage(text: str, **query: Any) -> httpx2.Response:
        return asker.client.get("/v1/usage", params=query, headers={"authorization": f"Bearer {text}"})

    with asker.client:
        asker.ask()
        assert usage(asker.text).json()["total"]["requests"] == 1
        assert usage(other).json()["total"]["requests"] == 0
        assert usage(other, key=asker.key.id).status_code == 403
        assert usage(other, key="nobody").status_code == 403
        assert usage(other, key="other").status_code == 200
        assert usage(admin, key="asker").json()["total"]["requests"] == 1
        assert usage(admin, key="nobody").status_code == 400
        for query in ({"days": 0}, {"days": "x"}, {"since": "2020"}, {"key": "x" * 65}):
            assert usage(admin, **query).status_code == 400


@contextmanager
def process(home: Path, *arguments: str, piece_s: float = 0.002) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server in a process of its own, and its URL."""
    command = [sys.executable, "-m", "tests.cli.slow_program", str(piece_s), str(piece_s), "the song of the whale"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "FINBACK_HOME": str(home)}
    with subprocess.Popen(
        [*command, "serve", "--port", "0", *arguments], stderr=subprocess.PIPE, env=environment
    ) as server:
        try:
            assert server.stderr
            server.stderr.readline()  # loaded
            said = server.stderr.readline().decode()
            found = re.search(r"https?://127\.0\.0\.1:\d+", said)
            assert found, said
            yield server, found[0]
        finally:
            server.kill()


def test_kill_9_loses_and_doubles_nothing(tmp_path: Path) -> None:
    rng = random.Random(9)
    acknowledged: list[Seen] = []
    for run in range(3):
        with process(tmp_path) as (server, url):

            async def until_killed(server: Any = server, url: str = url, run: int = run) -> list[Seen]:
                load = asyncio.create_task(mixed_load(url, requests=400, at_once=12, seed=run, leaving=0.1))
                await asyncio.sleep(0.5 + rng.random())
                server.send_signal(signal.SIGKILL)
                return await load

            acknowledged += [one for one in asyncio.run(until_killed()) if one.acknowledged]
        books = SqliteBooks(tmp_path)  # as the next server would
        books.check_integrity()
        books.close()
        booked = rows(tmp_path)
        assert all_closed(tmp_path)
        check_seen(acknowledged, booked)
    assert len(acknowledged) > 20
    assert "lost" in {row["finish_reason"] for row in booked.values()}


def test_budgets_survive_a_restart(tmp_path: Path) -> None:
    _, text = KeyStore(tmp_path).create("asker", Limits(tokens_per_day=60))
    body = {"model": "tiny", "prompt": "123456789", "max_tokens": 20, "seed": 1}
    statuses = []
    for _ in range(2):
        with process(tmp_path) as (_, url):
            headers = {"authorization": f"Bearer {text}"}
            statuses += [httpx2.post(f"{url}/v1/completions", json=body, headers=headers).status_code for _ in range(2)]
    assert statuses == [200, 200, 429, 429]


def test_a_wait_for_the_disk_is_shared(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk is, answers that end together are committed together."""
    write, batches = SqliteBooks.write, []

    def slow(books: SqliteBooks, entries: Any) -> None:
        batches.append(len(entries))
        time.sleep(0.05)
        write(books, entries)

    monkeypatch.setattr(SqliteBooks, "write", slow)
    running = serve(max_requests=32)
    seen = asyncio.run(mixed_load(running.url, requests=64, at_once=32, seed=4, max_tokens=10, leaving=0.0))
    assert all(one.acknowledged for one in seen)
    assert len(batches) < 64
    assert max(batches) > 8
