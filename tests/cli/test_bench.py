"""Benchmarks: what is timed, what a share of the bandwidth is, and what the record holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from finback import hardware
from finback.cli.bench import Load, _Decoded, _Timer
from finback.cli.facts import facts_of
from finback.config import Settings
from tests.cli.conftest import Cli
from tests.weights.tiny import write_tiny_folder

Loaded = Callable[..., Any]
KEYS = {
    "model", "path", "prompt", "gen", "depth", "prefill_depth", "batch", "threads", "repeats", "processor", "isa",
    "load_s",
    "prefill_tokens_per_s", "decode_tokens_per_s", "prefill_runs", "decode_runs", "read_bandwidth_bytes_per_s",
    "read_bytes_per_step", "bandwidth_share", "peak_memory_bytes", "weights_bytes",
}  # fmt: skip
QUICK = ("--prompt", "40", "--gen", "8", "--repeats", "2", "--threads", "1")


@pytest.fixture
def bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "read_bandwidth", lambda seconds: 10e9)


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_the_record(cli: Cli, tmp_path: Path, bandwidth: None, family: str) -> None:
    folder = tmp_path / family
    write_tiny_folder(folder, family)
    record = cli("bench", str(folder), *QUICK, "--depth", "100", "--batch", "3", "--json", status=0).json
    assert set(record) == KEYS
    assert (record["prompt"], record["gen"], record["depth"], record["batch"]) == (40, 8, 100, 3)
    assert record["threads"] == 1
    assert len(record["prefill_runs"]) == len(record["decode_runs"]) == 2
    assert record["prefill_tokens_per_s"] == statistics.median(record["prefill_runs"]) > 0
    facts = facts_of(folder, Settings(home=tmp_path / "home"))
    assert record["read_bytes_per_step"] == facts.step_bytes(3, 104)
    steps_per_s = record["decode_tokens_per_s"] / 3
    assert record["bandwidth_share"] == pytest.approx(steps_per_s * record["read_bytes_per_step"] / 10e9)


def test_the_share_is_of_the_bandwidth_around_the_steps(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([10e9, 20e9, 40e9, 60e9])
    monkeypatch.setattr(hardware, "read_bandwidth", lambda seconds: next(measured))
    write_tiny_folder(tmp_path / "tiny", "llama")
    record = cli("bench", str(tmp_path / "tiny"), *QUICK, "--json", status=0).json
    assert record["read_bandwidth_bytes_per_s"] == 30e9
    first, second = (speed * record["read_bytes_per_step"] for speed in record["decode_runs"])
    assert record["bandwidth_share"] == pytest.approx((first / 15e9 + second / 50e9) / 2)


def test_memory_is_looked_at_every_sixteen_steps(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, ticks = iter([10e9, 20e9, 40e9]), count()
    monkeypatch.setattr(hardware, "read_bandwidth", lambda seconds: next(measured))
    model = loaded(batch_tokens=64, draft_tokens=0)
    monkeypatch.setattr("finback.cli.bench.time.perf_counter", lambda: float(next(ticks)))
    decoded = _Timer(model, Load(8, 20, 4, 1, 1)).decode()
    assert decoded == _Decoded(tokens_per_s=20 / 2, readable_bytes=15e9 + 30e9, bandwidths=[10e9, 20e9, 40e9])


def test_for_people(cli: Cli, tmp_path: Path, bandwidth: None) -> None:
    write_tiny_folder(tmp_path / "tiny", "llama")
    text = cli("bench", str(tmp_path / "tiny"), *QUICK, status=0).out
    for part in ("prefill", "decode", "tokens/s", "10 GB/s measured", "at the most"):
        assert part in text


def test_a_load_that_the_model_cannot_carry(cli: Cli, tmp_path: Path) -> None:
    write_tiny_folder(tmp_path / "tiny", "llama")
    message, hint = cli("bench", str(tmp_path / "tiny"), "--depth", "600", status=1).error
    assert "512" in message
    assert "--depth" in str(hint)


@pytest.mark.parametrize(
    ("prompt", "depth", "timed", "begins"),
    [
        (40, 0, [40], 0),
        (40, 64, [40], 64),
        (40, 50, [26], 64),
        (100, 64, [64, 36], 64),
        (10, 50, [60], 0),
        (128, 0, [64, 64], 0),
    ],
)
def test_prefill_times_the_prompt_beyond_its_depth(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, prompt: int, depth: int, timed: list[int], begins: int
) -> None:
    model = loaded("x", batch_tokens=64)
    timer = _Timer(model, Load(prompt, 4, depth, 1, 1))
    ticks: list[int] = []
    batches = model.engine.model.batches

    def clock() -> float:
        ticks.append(len(batches))
        return float(len(ticks))

    monkeypatch.setattr("finback.cli.bench.time.perf_counter", clock)
    assert timer.prefill() == sum(timed)  # in one tick of the clock
    sizes = [len(batch.tokens) for batch in batches[ticks[0] : ticks[1]]]
    assert sizes == timed or (begins == 0 and sum(sizes) == sum(timed))
    assert timer.prefill_depth == begins


def test_decode_times_steps_in_which_every_sequence_writes(
    loaded: Loaded, bandwidth: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(batch_tokens=64, draft_tokens=0)
    timer = _Timer(model, Load(8, 5, 30, 3, 1))
    ticks: list[int] = []
    batches = model.engine.model.batches

    def clock() -> float:
        ticks.append(len(batches))
        return float(len(ticks))

    monkeypatch.setattr("finback.cli.bench.time.perf_counter", clock)
    assert timer.decode().tokens_per_s == 15
    timed = batches[ticks[0] : ticks[1]]
    assert [len(batch.tokens) for batch in timed] == [3] * 5
    assert all(not segment.prompt for batch in timed for segment in batch.segments)
    assert not model.engine.has_work


def test_bytes_of_a_step(tmp_path: Path) -> None:
    """A token reads dense weights, chosen experts, head and cache; several sequences share the dense part."""
    settings = Settings(home=tmp_path / "home")
    write_tiny_folder(tmp_path / "dense", "llama")
    dense = facts_of(tmp_path / "dense", settings)
    assert dense.step_bytes(1, 0) == dense.streamed_bytes_per_token
    assert dense.step_bytes(4, 10) == dense.streamed_bytes_per_token + 40 * dense.kv_bytes_per_token
    write_tiny_folder(tmp_path / "experts", "deepseek_v3")
    experts = facts_of(tmp_path / "experts", settings)
    assert experts.step_bytes(1, 0) == experts.streamed_bytes_per_token
    everything = sum(field.nbytes for field in experts.plan.fields)
    assert experts.step_bytes(1, 0) < experts.step_bytes(2, 0) < experts.step_bytes(50, 0) <= everything
    routed = 2 * 3 * 8 * 32 * 64 * 4  # layers, matrices, experts, width, hidden, bytes
    chosen = experts.step_bytes(1, 0) - (experts.step_bytes(10**6, 0) - routed)
    assert chosen == pytest.approx(routed * 3 / 8)


def test_a_server_is_measured_by_a_command_below(cli: Cli) -> None:
    assert "--trace" in cli("bench", "serve", "--help", status=0).out
    message, hint = cli("bench", "serve", "--url", "http://127.0.0.1:9/v1", status=1).error
    assert "127.0.0.1:9" in message
    assert "finback serve" in str(hint)
