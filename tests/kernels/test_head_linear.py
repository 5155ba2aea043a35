"""Products per head against the twin, and rule R1."""

from __future__ import annotations

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import head_linear, reference
from tests.kernels.packed import FORMAT_NAMES, normal, published


@pytest.mark.parametrize("format", FORMAT_NAMES)
@pytest.mark.parametrize("heads", [1, 3])
def test_like_the_twin(rng: np.random.Generator, isa: str, format: str, heads: int) -> None:
    w = published(rng, format, 20, 256, experts=heads).matrix
    for shape in [(5, heads, 256), (5, 256)]:
        x = normal(rng, *shape)
        assert np.allclose(head_linear(x, w), reference.head_linear(x, w), rtol=0, atol=2e-4)


@pytest.mark.parametrize("format", ["q8_0", "q4_k", "bf16", "f32"])
def test_a_row_depends_on_itself_alone(rng: np.random.Generator, isa: str, format: str) -> None:
    w = published(rng, format, 72, 256, experts=16).matrix
    x = normal(rng, 9, 16, 256)
    alone = np.concatenate([head_linear(x[i : i + 1], w) for i in range(9)])
    for threads in (1, 3):
        kernels.set_threads(threads)
        assert np.array_equal(head_linear(x, w), alone)
    assert np.array_equal(head_linear(np.ascontiguousarray(x[:, 5]), w)[:, 5], alone[:, 5])


def test_no_tokens_and_bad_shapes(rng: np.random.Generator) -> None:
    w = published(rng, "q8_0", 4, 32, experts=3).matrix
    assert head_linear(np.zeros((0, 3, 32), np.float32), w).shape == (0, 3, 4)
    for shape in [(2, 2, 32), (2, 3, 64), (2, 64), (32,), (1, 2, 3, 32)]:
        with pytest.raises(KernelArgumentError, match=r"^\[head_linear\] x"):
            head_linear(np.zeros(shape, np.float32), w)
