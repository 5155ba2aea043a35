"""Root-mean-square norm against its twin, and under rule R1."""

from __future__ import annotations

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import reference
from tests.kernels.paged import normal


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 64), (5, 3, 100), (1, 2048), (0, 8), (2, 0, 8)])
def test_equals_the_twin(isa: str, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x, weight = normal(rng, *shape), normal(rng, shape[-1])
    actual = kernels.rms_norm(x, weight, 1e-6)
    assert actual.shape == shape
    np.testing.assert_allclose(actual, reference.rms_norm(x, weight, 1e-6), rtol=2e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_the_same_alone_and_among_others(isa: str, rng: np.random.Generator, threads: int) -> None:
    x, weight = normal(rng, 100, 1001), normal(rng, 1001)
    alone = np.concatenate([kernels.rms_norm(row[None], weight, 1e-5) for row in x])
    kernels.set_threads(threads)
    np.testing.assert_array_equal(kernels.rms_norm(x, weight, 1e-5), alone)


def test_refuses() -> None:
    x = np.zeros((2, 4), np.float32)
    with pytest.raises(KernelArgumentError, match=r"\[rms_norm\] weight"):
        kernels.rms_norm(x, np.ones(3, np.float32), 1e-6)
    with pytest.raises(KernelArgumentError, match=r"\[rms_norm\] x"):
        kernels.rms_norm(x.T, np.ones(2, np.float32), 1e-6)
    with pytest.raises(KernelArgumentError, match=r"\[rms_norm\] x"):
        kernels.rms_norm(np.zeros((2, 0), np.float32), np.ones(0, np.float32), 1e-6)
