"""Experts against the twin, the order of the weighted sum, uneven and repeated choices, and rule R1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import Matrix, mlp, moe, reference
from tests.kernels.packed import FORMAT_NAMES, normal, published

Network = tuple[Matrix, Matrix, Matrix]


def network(rng: np.random.Generator, formats: tuple[str, str, str], hidden: int, inner: int, experts: int) -> Network:
    gate, up, down = formats
    return (
        published(rng, gate, inner, hidden, experts).matrix,
        published(rng, up, inner, hidden, experts).matrix,
        published(rng, down, hidden, inner, experts).matrix,
    )


def choices(rng: np.random.Generator, n: int, k: int, experts: int) -> tuple[Any, Any]:
    """Repeats included."""
    return rng.integers(0, experts, (n, k)).astype(np.int32), rng.uniform(0, 1, (n, k)).astype(np.float32)


@pytest.mark.parametrize("format", FORMAT_NAMES)
@pytest.mark.parametrize("with_shared", [False, True])
def test_like_the_twin(rng: np.random.Generator, isa: str, format: str, with_shared: bool) -> None:
    weights = network(rng, (format,) * 3, 256, 256, 5)
    shared = network(rng, (format,) * 3, 256, 512, 1) if with_shared else None
    x, add = normal(rng, 7, 256), normal(rng, 7, 256)
    ids, factors = choices(rng, 7, 3, 5)
    y = moe(x, ids, factors, *weights, shared=shared, add=add)
    expected = reference.moe(x, ids, factors, *weights, shared=shared, add=add)
    assert np.linalg.norm(y - expected) <= 1e-3 * np.linalg.norm(expected - add)


@pytest.mark.parametrize("formats", [("q4_k", "q4_k", "q6_k"), ("q4_0", "q4_0", "q4_0"), ("f32", "bf16", "f16")])
def test_a_row_depends_on_itself_alone(rng: np.random.Generator, isa: str, formats: tuple[str, str, str]) -> None:
    weights = network(rng, formats, 256, 256, 9)
    shared = network(rng, formats, 256, 256, 1)
    x = normal(rng, 130, 256)
    ids, factors = choices(rng, 130, 4, 9)
    ids[:100, 0] = 2  # one expert has far more tokens than the others
    alone = [moe(x[i : i + 1], ids[i : i + 1], factors[i : i + 1], *weights, shared=shared) for i in range(0, 130, 13)]
    for threads in (1, 3):
        kernels.set_threads(threads)
        y = moe(x, ids, factors, *weights, shared=shared)
        assert np.array_equal(y[::13], np.concatenate(alone))


def test_the_sum_is_taken_in_the_order_of_the_choices(rng: np.random.Generator) -> None:
    """Bit-equal to adding each expert's own result, one after the other, with fused multiply-adds."""
    weights = network(rng, ("q4_0", "q4_0", "q4_0"), 64, 96, 4)
    x = normal(rng, 3, 64)
    ids, factors = choices(rng, 3, 3, 4)
    one = np.ones((3, 1), np.float32)
    parts = [moe(x, np.ascontiguousarray(ids[:, j : j + 1]), one, *weights) for j in range(3)]
    total = np.zeros((3, 64))
    for j, part in enumerate(parts):  # float64 holds the exact product, so one rounding is a fused one
        total = (total + factors[:, j : j + 1].astype(np.float64) * part).astype(np.float32).astype(np.float64)
    assert np.abs(moe(x, ids, factors, *weights) - total).max() <= 2e-7 * np.abs(total).max()


def test_shared_alone_is_the_dense_network(rng: np.random.Generator) -> None:
    weights = network(rng, ("q8_0", "q8_0", "q8_0"), 64, 96, 2)
    shared = network(rng, ("q8_0", "q8_0", "q8_0"), 64, 128, 1)
    x = normal(rng, 6, 64)
    ids, factors = choices(rng, 6, 2, 2)
    y = moe(x, ids, np.zeros_like(factors), *weights, shared=shared)
    assert np.array_equal(y, mlp(x, *shared))


def test_no_tokens(rng: np.random.Generator) -> None:
    weights = network(rng, ("q4_0", "q4_0", "q4_0"), 64, 96, 4)
    empty = np.zeros((0, 64), np.float32)
    y = moe(empty, np.zeros((0, 2), np.int32), np.zeros((0, 2), np.float32), *weights, add=empty)
    assert y.shape == (0, 64)


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
def test_experts_out_of_range(rng: np.random.Generator, bad: int) -> None:
    weights = network(rng, ("q4_0", "q4_0", "q4_0"), 64, 96, 4)
    ids, factors = choices(rng, 3, 2, 4)
    ids[1, 1] = bad
    with pytest.raises(KernelArgumentError, match=r"^\[moe\] ids\[1, 1\] must be from 0 to 3, not"):
        moe(normal(rng, 3, 64), ids, factors, *weights)


def test_bad_shapes(rng: np.random.Generator) -> None:
    weights = network(rng, ("q4_0", "q4_0", "q4_0"), 64, 96, 4)
    other = network(rng, ("q4_0", "q4_0", "q4_0"), 32, 96, 1)
    x = normal(rng, 3, 64)
    ids, factors = choices(rng, 3, 2, 4)
    for call in (
        lambda: moe(x, ids[:2], factors, *weights),
        lambda: moe(x, ids, factors[:, :1].copy(), *weights),
        lambda: moe(x, ids[:, :0].copy(), factors[:, :0].copy(), *weights),
        lambda: moe(x, ids.astype(np.int64), factors, *weights),  # type: ignore[arg-type]
        lambda: moe(x, ids, factors, *weights, shared=other),
        lambda: moe(x, ids, factors, *weights, shared=weights),
        lambda: moe(x, ids, factors, *weights, add=x[:2]),
    ):
        with pytest.raises(KernelArgumentError, match=r"^\[moe\]"):
            call()
