"""How a server ends: told once it finishes its work, told twice it does not; and how it outlives a failed engine."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from tests.server.load import mixed_load
from tests.server.test_http import until
from tests.server.test_ledger import all_closed, check_seen, process, rows

BODY = {"model": "tiny", "prompt": "go on", "max_tokens": 20}


def test_sigterm_under_load_completes_every_running_request(tmp_path: Path) -> None:
    with process(tmp_path, piece_s=0.01) as (server, url):

        async def until_told() -> list[Any]:
            load = asyncio.create_task(mixed_load(url, requests=300, at_once=8, seed=1, leaving=0.0))
            await asyncio.sleep(1.0)
            server.send_signal(signal.SIGTERM)
            return await load

        seen = asyncio.run(until_told())
        assert server.wait(20) == 0
    begun = [one for one in seen if one.status == 200]
    assert len(begun) > 10
    assert all(one.acknowledged and not one.error for one in begun)
    refused = [one for one in seen if one.status not in (0, 200)]
    assert all(one.status == 503 for one in refused)
    check_seen(seen, rows(tmp_path))
    assert all_closed(tmp_path)
    assert {row["finish_reason"] for row in rows(tmp_path).values()} & {"lost", "abort", "error"} == set()


def test_while_it_drains(serve: Callable[..., Any]) -> None:
    running = serve()
    running.gate.active += 1  # as if a request were running
    running.gate.draining = True
    with httpx2.Client(base_url=running.url) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.get("/v1/models").status_code == 200
        refused = client.post("/v1/completions", json=BODY)
    running.gate.active -= 1
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "server_error"


def long_request(url: str, told: list[str]) -> threading.Thread:
    def read() -> None:
        body = BODY | {"max_tokens": 400, "stream": True}
        try:
            with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as response:
                told.extend(response.iter_lines())
        except httpx2.HTTPError as fault:
            told.append(repr(fault))

    thread = threading.Thread(target=read)
    thread.start()
    assert until(lambda: len(told) > 3)
    return thread


def test_at_the_end_of_its_grace_it_says_so(tmp_path: Path) -> None:
    with process(tmp_path, "--grace", "1", piece_s=0.1) as (server, url):
        told: list[str] = []
        thread = long_request(url, told)
        server.send_signal(signal.SIGTERM)
        assert until(lambda: httpx2.get(f"{url}/readyz").status_code == 503, 1.0)
        assert server.wait(10) == 0
        thread.join()
    assert any('"error"' in line and "shutting down" in line for line in told)
    [row] = rows(tmp_path).values()
    assert (row["finish_reason"], row["status"]) == ("error", 500)
    assert row["output_tokens"] >= len([line for line in told if '"text"' in line])


def test_the_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with process(tmp_path, piece_s=0.1) as (server, url):
        told: list[str] = []
        thread = long_request(url, told)
        server.send_signal(signal.SIGTERM)
        assert until(lambda: httpx2.get(f"{url}/readyz").status_code == 503, 1.0)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 5
        thread.join()


def break_steps(engine: Any, times: int) -> None:
    step = engine.step

    def failing() -> Any:
        nonlocal times
        if times:
            times -= 1
            raise RuntimeError("a cosmic ray")
        return step()

    engine.step = failing


def test_a_failed_step_is_an_error_and_the_engine_goes_on(serve: Callable[..., Any]) -> None:
    running = serve()
    with httpx2.Client(base_url=running.url) as client:
        for stream in (False, True):
            break_steps(running.engine, 1)
            failed = client.post("/v1/completions", json=BODY | {"stream": stream})
            assert failed.status_code == (200 if stream else 500)
            assert "the engine failed" in failed.text
            assert "[DONE]" not in failed.text
            assert client.post("/v1/completions", json=BODY).status_code == 200
        assert client.get("/readyz").status_code == 200
    assert until(lambda: not running.engine.has_work)
    running.engine.check_integrity()
    assert sorted(row["finish_reason"] for row in rows(running.home).values()) == ["error", "error", "length", "length"]


def test_a_broken_engine_is_replaced(serve: Callable[..., Any]) -> None:
    running = serve()
    first = running.engine

    def broken() -> None:
        raise AssertionError("blocks are lost")

    with httpx2.Client(base_url=running.url) as client:
        break_steps(first, 1)
        first.check_integrity = broken
        assert client.post("/v1/completions", json=BODY).status_code == 500
        assert client.post("/v1/completions", json=BODY).json()["choices"][0]["finish_reason"] == "length"
    assert running.model.engine is not first
