"""Rotary position embedding against its twin, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import reference
from tests.kernels.paged import normal


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("width", "pairs", "start"), [(64, 32, 0), (192, 32, 128), (10, 3, 1), (50, 20, 10), (4, 0, 0)]
)
def test_equals_the_twin(
    isa: str, rng: np.random.Generator, width: int, pairs: int, start: int, interleaved: bool
) -> None:
    x, cos, sin = normal(rng, 5, 3, width), normal(rng, 5, pairs), normal(rng, 5, pairs)
    actual, expected = x.copy(), x.copy()
    kernels.rope(actual, cos, sin, interleaved=interleaved, start=start)
    reference.rope(expected, cos, sin, interleaved=interleaved, start=start)
    np.testing.assert_array_equal(actual, expected)
    outside = np.r_[0:start, start + 2 * pairs : width]
    np.testing.assert_array_equal(actual[..., outside], x[..., outside])


@pytest.mark.parametrize("interleaved", [False, True])
def test_threads(isa: str, rng: np.random.Generator, interleaved: bool) -> None:
    x, cos, sin = normal(rng, 300, 9, 64), normal(rng, 300, 32), normal(rng, 300, 32)
    one, three = x.copy(), x.copy()
    kernels.rope(one, cos, sin, interleaved=interleaved)
    kernels.set_threads(3)
    kernels.rope(three, cos, sin, interleaved=interleaved)
    np.testing.assert_array_equal(three, one)
    assert not np.array_equal(one, x)


def test_refuses() -> None:
    x, half = np.zeros((2, 3, 8), np.float32), np.zeros((2, 3), np.float32)
    for start in (-1, 3, 2**62):
        with pytest.raises(KernelArgumentError, match=r"\[rope\] elements"):
            kernels.rope(x, half, half, interleaved=False, start=start)
    with pytest.raises(KernelArgumentError, match=r"\[rope\] cos"):
        kernels.rope(x, half[:1], half, interleaved=False)
    with pytest.raises(KernelArgumentError, match=r"\[rope\] x"):
        kernels.rope(x[:, :, ::2], half[:, :1].copy(), half[:, :1].copy(), interleaved=False)
