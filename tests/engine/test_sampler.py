"""Choosing tokens: the generator, penalties and bias against their formulas, log-probabilities of the raw logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finback.engine.request import SamplingParams
from finback.engine.sampler import Sampler, philox, uniform
from finback.errors import EngineError

words = st.integers(0, 2**64 - 1)


@given(key=words, counter=words)
@settings(max_examples=200, deadline=None)
def test_philox_is_numpys(key: int, counter: int) -> None:
    ours = philox(key, counter)
    # NumPy steps its counter before it draws.
    before = (counter - 1) % 2**256
    assert ours == int(np.random.Philox(key=key, counter=before).random_raw())


def test_uniform_numbers_are_uniform() -> None:
    numbers = np.array([uniform(1234, position) for position in range(20_000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.float32(numbers.max()) < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 45  # 19 degrees of freedom: p > 0.0007; the numbers are always the same
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


def test_a_negative_seed_is_a_seed() -> None:
    assert uniform(-1, 0) == uniform(2**64 - 1, 0) != uniform(1, 0)


def logits_of(**values: float) -> np.ndarray:
    row = np.zeros(8, np.float32)
    for name, value in values.items():
        row[int(name[1:])] = value
    return row


def choose(logits: np.ndarray, tokens: list[int], prompt: int = 0, seed: int = 7, **params) -> int:
    sampler = Sampler(SamplingParams(**{"temperature": 0, **params}), tokens[:prompt], seed)
    return sampler.choose(logits, tokens)[0]


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    assert choose(logits_of(t3=2, t5=2), [1]) == 3


@pytest.mark.parametrize("name", ["top_p", "temperature", "min_p"])
def test_settings_that_float32_cannot_hold(name: str) -> None:
    """They are allowed values, so they choose a token."""
    assert choose(logits_of(t3=90), [1], **{"temperature": 1, name: 5e-324}) == 3


def test_repetition_penalty_counts_prompt_and_answer_once() -> None:
    logits = logits_of(t1=2.0, t2=1.9, t3=1.0, t4=-3.0)
    assert choose(logits, [1], prompt=1, repetition_penalty=2.0) == 2
    assert choose(logits, [1, 2, 2, 2], prompt=1, repetition_penalty=1.5) == 1  # 1.33, 1.27
    assert choose(logits, [1, 2], prompt=1, repetition_penalty=2.0) == 1  # 1.0, 0.95, 1.0: the first of equals
    assert choose(-np.arange(8, dtype=np.float32) - 1, [0], prompt=1, repetition_penalty=3.0) == 1  # -3, -2


def test_presence_and_frequency_count_the_answer_only() -> None:
    logits = logits_of(t1=2.0, t2=1.5)
    assert choose(logits, [1, 1, 1], prompt=3, presence_penalty=2.0, frequency_penalty=2.0) == 1
    assert choose(logits, [5, 1], prompt=1, presence_penalty=0.6) == 2
    assert choose(logits, [5, 1], prompt=1, frequency_penalty=0.4) == 1
    assert choose(logits, [5, 1, 1], prompt=1, frequency_penalty=0.4) == 2
    assert choose(logits, [5, 1, 1, 1], prompt=1, presence_penalty=0.4) == 1
    assert choose(logits_of(t1=2.0), [5, 2], prompt=1, presence_penalty=-2.0, frequency_penalty=-0.5) == 2


def test_counts_grow_with_the_answer() -> None:
    sampler = Sampler(SamplingParams(temperature=0, frequency_penalty=0.4), [5], seed=0)
    tokens, logits = [5], logits_of(t1=2.0, t2=1.5)
    for _ in range(6):
        tokens.append(sampler.choose(logits, tokens)[0])
    assert tokens == [5, 1, 1, 2, 1, 2, 1]


def test_bias_is_added_and_the_models_row_is_not_touched() -> None:
    logits = logits_of(t1=2.0)
    before = logits.copy()
    assert choose(logits, [1], logit_bias={6: 2.5}) == 6
    assert choose(logits, [1], logit_bias={1: -100}, repetition_penalty=1.5, presence_penalty=1.0) == 0
    assert (logits == before).all()


def test_a_seed_and_a_position_fix_the_choice() -> None:
    logits = np.zeros(1000, np.float32)
    at = [choose(logits, [0] * length, temperature=1.0) for length in range(1, 30)]
    assert at == [choose(logits, [0] * length, temperature=1.0) for length in range(1, 30)]
    assert len(set(at)) > 20
    assert at != [choose(logits, [0] * length, temperature=1.0, seed=8) for length in range(1, 30)]


def test_temperature_top_k_top_p_and_min_p_reach_the_kernel() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))

    def support(**params) -> set[int]:
        return {choose(logits, [0], temperature=1.0, seed=seed, **params) for seed in range(300)}

    assert support() == {0, 1, 2, 3}
    assert support(top_k=2) == {0, 1}
    assert support(top_p=0.7) == {0, 1}
    assert support(top_p=0) == {0}
    assert support(min_p=0.2) == {0, 1, 2}
    assert support(top_k=3, min_p=0.5) == {0, 1}


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32)) + 3
    sampler = Sampler(SamplingParams(temperature=0, logprobs=2, logit_bias={3: 100.0}), [0], seed=0)
    token, logprob = sampler.choose(logits, [0])
    assert token == 3
    assert logprob is not None
    assert logprob.logprob == pytest.approx(np.log(0.05), abs=1e-5)
    assert [token for token, _ in logprob.top] == [0, 1]
    assert [value for _, value in logprob.top] == pytest.approx(np.log([0.5, 0.3]), abs=1e-5)


def test_no_logprobs_unless_asked_and_none_at_the_top_for_zero() -> None:
    logits = np.zeros(4, np.float32)
    assert Sampler(SamplingParams(), [0], 0).choose(logits, [0])[1] is None
    entry = Sampler(SamplingParams(logprobs=0), [0], 0).choose(logits, [0])[1]
    assert entry is not None
    assert entry.top == ()
    assert entry.logprob == pytest.approx(np.log(0.25), abs=1e-5)


def test_more_logprobs_than_tokens() -> None:
    entry = Sampler(SamplingParams(logprobs=50), [0], 0).choose(np.zeros(4, np.float32), [0])[1]
    assert entry is not None
    assert len(entry.top) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "top_p": 0.5}, {"logit_bias": {5: 1.0}, "logprobs": 2}])
def test_logits_that_are_not_numbers_are_an_error(bad: float, params: dict) -> None:
    logits = np.zeros(8, np.float32)
    logits[5] = bad
    with pytest.raises(EngineError, match="not numbers"):
        choose(logits, [0], **params)


def test_minus_infinity_is_never_chosen() -> None:
    logits = np.full(8, -np.inf, np.float32)
    with pytest.raises(EngineError, match="not numbers"):
        choose(logits, [0])
    logits[3] = -5
    assert {choose(logits, [0], temperature=1.0, seed=seed) for seed in range(20)} == {3}


def test_large_finite_logits_are_numbers() -> None:
    assert choose(np.full(8, 3e38, np.float32), [0]) == 0
