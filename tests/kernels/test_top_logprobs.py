"""Log-probabilities against the twin."""

from __future__ import annotations

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import reference
from tests.kernels.paged import normal


@pytest.mark.parametrize("vocab", [1, 9, 1000, 50_001])
@pytest.mark.parametrize("k", [0, 1, 5, 20, 1000])
def test_equals_the_twin(isa: str, rng: np.random.Generator, vocab: int, k: int) -> None:
    logits = normal(rng, vocab) * np.float32(5)
    ids, logprobs = kernels.top_logprobs(logits, min(k, vocab))
    expected_ids, expected = reference.top_logprobs(logits, min(k, vocab))
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(logprobs, expected, rtol=1e-6, atol=1e-6)
    for id, logprob in zip(ids[:3], logprobs, strict=False):
        assert kernels.logprob_of(logits, int(id)) == logprob


def test_ties_go_to_the_smaller_index(isa: str) -> None:
    logits = np.zeros(100, np.float32)
    logits[[70, 20]] = 1
    np.testing.assert_array_equal(kernels.top_logprobs(logits, 5)[0], [20, 70, 0, 1, 2])


def test_probabilities_sum_to_one(isa: str, rng: np.random.Generator) -> None:
    logits = normal(rng, 3000) * np.float32(20)
    logits[17] = -np.inf
    ids, logprobs = kernels.top_logprobs(logits, 3000)
    assert sorted(ids) == list(range(3000))
    assert ids[-1] == 17
    assert logprobs[-1] == -np.inf
    assert np.exp(logprobs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-6)


def test_refuses() -> None:
    logits = np.zeros(4, np.float32)
    for k in (-1, 5):
        with pytest.raises(KernelArgumentError, match=r"\[top_logprobs\] k"):
            kernels.top_logprobs(logits, k)
    for id in (-1, 4):
        with pytest.raises(KernelArgumentError, match=r"\[logprob_of\] id"):
            kernels.logprob_of(logits, id)
    logits[2] = np.nan
    with pytest.raises(KernelArgumentError, match=r"\[top_logprobs\] logits"):
        kernels.top_logprobs(logits, 1)
