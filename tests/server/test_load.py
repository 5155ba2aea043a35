"""The load generator against a real server and against plain arithmetic."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.server.test_ledger import rows

from finback.cli import bench_serve
from finback.errors import ConfigError
from finback.server import load
from finback.server.keys import KeyStore, Limits
from finback.server.load import Ask, Felt, Target


def test_a_poisson_process_has_its_rate() -> None:
    asks = load.poisson(5000, 4.0, 10, 3, seed=1)
    gaps = [b.at_s - a.at_s for a, b in pairwise(asks)]
    assert asks[0] == Ask(0.0, 10, 3)
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.05)
    assert load.poisson(9, 4.0, 10, 3, seed=1) == asks[:9]


@pytest.mark.parametrize(
    "text",
    [
        "at_s,prompt_tokens,output_tokens\n5,10,2\n6.5,20,3\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,10,2\n2023-11-16 18:15:48.1805900,20,3\n",
        "\ufeffoutput_tokens,other,prompt_tokens,at_s\n2,x,10,100\n3,x,20,101.5\n",
    ],
)
def test_traces(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    first, second = load.read_trace(path)
    assert first == Ask(0.0, 10, 2)
    assert (second.at_s, second.prompt_tokens, second.output_tokens) == (pytest.approx(1.5), 20, 3)
    assert load.read_trace(path, 1) == [first]


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "at_s,prompt_tokens,output_tokens\n", "at_s,prompt_tokens,output_tokens\n1,x,2\n"]
)
def test_bad_traces(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"trace\.csv"):
        load.read_trace(path)
    with pytest.raises(ConfigError):
        load.read_trace(tmp_path / "none.csv")


def test_a_sample_is_drawn_from_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("at_s,prompt_tokens,output_tokens\n" + "".join(f"{n},{n + 1},1\n" for n in range(1000)))
    asks = load.read_trace(path, 50, seed=3)
    assert len(asks) == 50
    assert asks[0].at_s == 0
    assert [a.at_s for a in asks] == sorted(a.at_s for a in asks)
    assert max(ask.prompt_tokens for ask in asks) > 500
    assert asks == load.read_trace(path, 50, seed=3) != load.read_trace(path, 50, seed=4)


@pytest.mark.parametrize(("prompt", "answer"), [(10, 5), (10_000, 5), (5, 10_000), (10_000, 10_000), (1, 1)])
def test_lengths_fit_the_context(prompt: int, answer: int) -> None:
    ask = Ask(0.0, prompt, answer).capped(100)
    assert ask.prompt_tokens >= 1
    assert ask.output_tokens >= 1
    assert ask.prompt_tokens + ask.output_tokens < 100


def test_the_summary_is_arithmetic() -> None:
    def felt(sent: float, first: float, last: float, tokens: int) -> Felt:
        return Felt(Ask(sent, 10, tokens), sent, first, last, 200, 10, tokens)

    several = [
        felt(0, 1, 3, 5),
        felt(1, 1.5, 2.5, 2),
        felt(2, 6, 10, 3),
        Felt(Ask(3, 1, 1), 3, None, 3.1, 429, error="busy"),
    ]
    found = load.summary(several, slo_ttft_s=1.0, slo_tpot_s=0.6)
    assert (found["requests"], found["completed"], found["failed"]) == (4, 3, 1)
    assert found["statuses"] == {"200": 3, "429": 1}
    assert found["duration_s"] == 10
    assert found["output_tokens_per_s"] == 1.0
    assert found["ttft_s"] == {"mean": pytest.approx(5.5 / 3), "p50": 1, "p90": 4, "p95": 4, "p99": 4, "max": 4}
    assert found["tpot_s"]["p50"] == 1.0
    assert found["goodput_requests_per_s"] == pytest.approx(0.1)
    assert load.percentiles([]) is None
    assert load.percentiles(range(1, 101))["p95"] == 95  # type: ignore[index]


def test_a_load_on_a_server(serve: Callable[..., Any]) -> None:
    running = serve(max_requests=8)
    _, key = KeyStore(running.home).create("load")

    async def measure() -> tuple[list[Felt], int | None]:
        target, context = await load.find(f"{running.url}/v1", key, None)
        assert (target.model, target.vocabulary) == ("tiny", 258)
        asks = load.poisson(30, 200.0, 20, 6, seed=1)
        return await load.run(target, asks, speed=1.0, streams=None, seed=1), context

    felt, context = asyncio.run(measure())
    assert context == 512
    assert all(one.ok and (one.prompt_tokens, one.output_tokens) == (20, 6) for one in felt)
    assert all(one.sent_s >= one.ask.at_s for one in felt)
    assert all(one.first_s is not None and one.sent_s < one.first_s <= one.last_s for one in felt)
    assert len(rows(running.home)) == 30


def test_what_is_refused_is_counted(serve: Callable[..., Any]) -> None:
    running = serve()
    _, key = KeyStore(running.home).create("load", Limits(requests_per_minute=5))
    target = Target(f"{running.url}/v1", "tiny", key)
    felt = asyncio.run(load.run(target, [Ask(0.0, 5, 2)] * 12, speed=1.0, streams=3, seed=1))
    found = load.summary(felt, slo_ttft_s=5, slo_tpot_s=5)
    assert found["statuses"] == {"200": 5, "429": 7}
    assert "rate_limit" in found["errors"][0]


def test_the_command(
    serve: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve()
    bench = bench_serve.serve.callback
    assert bench
    options = {"model": None, "trace": None, "speed": 1.0, "streams": 2, "sample": False, "context": None, "plot": None}
    slo = {"slo_ttft": 5.0, "slo_tpot": 0.5}
    size = {"requests": 4, "rate": 1.0, "prompt": 1000, "gen": 5, "seed": 1}
    bench(url=f"{running.url}/v1", **options, **slo, **size, json=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["completed"], record["output_tokens"], record["prompt_tokens"]) == (4, 20, 4 * 506)
    bench(url=f"{running.url}/v1", **options, **slo, **size, json=False)
    assert "4 completed, 0 failed" in capsys.readouterr().out
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        with pytest.raises(ConfigError, match="no server"):
            bench(url=url, **options, **slo, **size, json=False)
    KeyStore(running.home).create("somebody")
    with pytest.raises(ConfigError) as caught:
        bench(url=f"{running.url}/v1", **options, **slo, **size, json=False)
    assert "FINBACK_API_KEY" in str(caught.value.hint)


def test_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from finback.cli.bench_serve import _plot

    _plot(
        [Felt(Ask(0, 1, 2), 0.0, 0.5, 1.0, 200, 1, 2), Felt(Ask(0, 1, 1), 0.2, None, 0.3, 429, error="x")],
        tmp_path / "p.png",
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
