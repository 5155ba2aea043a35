"""Drawing tokens: against the twin, against the definition's corner cases, and the same on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import reference
from tests.kernels.paged import normal

PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "uniform": 0.0}


def parameters(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "temperature": float(rng.choice([0.05, 0.6, 1, 1.9])),
        "top_k": int(rng.choice([0, 1, 2, 40, 5000, 10**9])),
        "top_p": float(rng.choice([1e-6, 0.3, 0.95, 0.999, 1])),
        "min_p": float(rng.choice([0, 0.05, 1])),
        "uniform": float(rng.choice([0, rng.random()])),
    }


@pytest.mark.parametrize("vocab", [1, 2, 5, 1000, 50_001])
@pytest.mark.parametrize("spread", [0.02, 3.0, 60.0])
def test_equals_the_twin(isa: str, rng: np.random.Generator, vocab: int, spread: float) -> None:
    logits = normal(rng, vocab) * np.float32(spread)
    for _ in range(30):
        chosen = parameters(rng)
        assert kernels.sample(logits, **chosen) == reference.sample(logits, **chosen), chosen


def test_frequencies(isa: str, rng: np.random.Generator) -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(probabilities).astype(np.float32)
    draws = [kernels.sample(logits, **{**PLAIN, "uniform": (i + 0.5) / 1000}) for i in range(1000)]
    np.testing.assert_array_equal(np.bincount(draws), 1000 * probabilities)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_p": 0.49}, {1}),
        ({"top_p": 0.51}, {1, 3}),
        ({"min_p": 0.6}, {1, 3}),
        ({"min_p": 0.61}, {1}),
        ({"top_k": 3, "top_p": 0.9}, {1, 3, 0}),
        ({"top_k": 2, "top_p": 0.6}, {1}),
        ({"temperature": 0.5, "top_p": 0.7}, {1, 3}),
        ({"temperature": 0.0}, {1}),
        ({}, {0, 1, 2, 3}),
    ],
)
def test_what_is_kept(isa: str, change: dict[str, Any], kept: set[int]) -> None:
    logits = np.log(np.array([0.15, 0.5, 0.05, 0.3004])).astype(np.float32)
    draws = {
        kernels.sample(logits, **{**PLAIN, **change, "uniform": u})
        for u in [*np.linspace(0, 0.999, 200), np.nextafter(1, 0)]
    }
    assert draws == kept


def test_ties_go_to_the_smaller_index(isa: str) -> None:
    logits = np.zeros(1000, np.float32)
    logits[[7, 500, 900]] = 2
    assert kernels.sample(logits, **{**PLAIN, "temperature": 0.0}) == 7
    order = [kernels.sample(logits, **{**PLAIN, "top_k": 4, "uniform": u}) for u in (0, 0.4, 0.7, 0.99)]
    assert order == [7, 500, 900, 0]


def test_minus_infinity_is_never_drawn(isa: str, rng: np.random.Generator) -> None:
    logits = np.full(300, -np.inf, np.float32)
    logits[[5, 299]] = [0.0, -80.0]
    assert {kernels.sample(logits, **{**PLAIN, "uniform": u}) for u in (0, 0.5, 1 - 2**-53)} == {5}
    logits[5] = -90
    assert kernels.sample(logits, **{**PLAIN, "uniform": 0.5}) == 299


@pytest.mark.parametrize(("temperature", "expected"), [(1e-45, 1), (1e-30, 1), (1e30, 2), (3e38, 0)])
def test_extreme_temperatures(isa: str, temperature: float, expected: int) -> None:
    logits = np.array([1.0, 5.0, 3.0, -1e38], np.float32)
    assert kernels.sample(logits, **{**PLAIN, "temperature": temperature, "uniform": 0.6}) == expected


def test_the_same_on_every_instruction_set(rng: np.random.Generator) -> None:
    logits = normal(rng, 20_000)
    cases = [parameters(rng) for _ in range(40)]
    draws = []
    for name in kernels.available_isas():
        previous = kernels.select_isa(name)
        draws.append([kernels.sample(logits, **case) for case in cases])
        kernels.select_isa(previous)
    assert all(drawn == draws[0] for drawn in draws)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_refuses_logits_that_are_no_numbers(isa: str, bad: float, temperature: float) -> None:
    for at in (0, 8, 18):
        logits = np.zeros(19, np.float32)
        logits[at] = bad
        with pytest.raises(KernelArgumentError, match=r"\[sample\] logits"):
            kernels.sample(logits, **{**PLAIN, "temperature": temperature})
    with pytest.raises(KernelArgumentError, match=r"\[sample\] logits"):
        kernels.sample(np.full(9, -np.inf, np.float32), **{**PLAIN, "temperature": temperature})


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -0.1}, {"temperature": np.nan}, {"temperature": np.inf}, {"top_k": -1}, {"top_p": 0.0},
        {"top_p": 1.1}, {"top_p": np.nan}, {"min_p": -0.1}, {"min_p": 2.0}, {"uniform": 1.0}, {"uniform": -0.5},
    ],
)  # fmt: skip
def test_refuses_parameters_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(KernelArgumentError, match=rf"\[sample\] {next(iter(change))}"):
        kernels.sample(np.zeros(4, np.float32), **{**PLAIN, **change})


@pytest.mark.parametrize("logits", [np.zeros(0, np.float32), np.zeros((1, 4), np.float32), np.zeros(4)])
def test_refuses_logits_of_another_shape(logits: Any) -> None:
    with pytest.raises(KernelArgumentError, match=r"\[sample\] logits"):
        kernels.sample(logits, **PLAIN)
