"""The gated network against its twin, and rule R1."""

from __future__ import annotations

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import Matrix, linear, mlp, reference
from tests.kernels.packed import FORMAT_NAMES, normal, published


def network(rng: np.random.Generator, formats: tuple[str, str, str], hidden: int, inner: int) -> tuple[Matrix, ...]:
    gate, up, down = formats
    return (
        published(rng, gate, inner, hidden).matrix,
        published(rng, up, inner, hidden).matrix,
        published(rng, down, hidden, inner).matrix,
    )


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_like_the_twin(rng: np.random.Generator, isa: str, format: str) -> None:
    weights = network(rng, (format,) * 3, 256, 768)
    x, add = normal(rng, 5, 256), normal(rng, 5, 256)
    y, expected = mlp(x, *weights, add=add), reference.mlp(x, *weights, add=add)
    # Rounded differently by one code here and there, as the hidden values differ in their last bits.
    assert np.linalg.norm(y - expected) <= 1e-3 * np.linalg.norm(expected - add)


@pytest.mark.parametrize(("hidden", "inner"), [(24, 40), (1, 1), (30, 65), (64, 200)])
def test_float_networks_of_odd_sizes(rng: np.random.Generator, isa: str, hidden: int, inner: int) -> None:
    weights = network(rng, ("f32", "bf16", "f16"), hidden, inner)
    x = normal(rng, 70, hidden)
    assert np.allclose(mlp(x, *weights), reference.mlp(x, *weights), rtol=0, atol=1e-5)


@pytest.mark.parametrize("formats", [("q4_k", "q4_k", "q6_k"), ("q8_0", "f32", "q8_0"), ("q4_0", "q5_0", "bf16")])
def test_a_row_depends_on_itself_alone(rng: np.random.Generator, isa: str, formats: tuple[str, str, str]) -> None:
    weights = network(rng, formats, 256, 512)
    x = normal(rng, 70, 256)
    alone = np.concatenate([mlp(x[i : i + 1], *weights) for i in range(len(x))])
    for threads in (1, 3):
        kernels.set_threads(threads)
        for n in (0, 2, 5, 70):
            assert np.array_equal(mlp(x[:n], *weights), alone[:n])


def test_residual_is_added_last(rng: np.random.Generator) -> None:
    weights = network(rng, ("q4_0", "q4_0", "q4_0"), 64, 96)
    x, add = normal(rng, 3, 64), normal(rng, 3, 64)
    assert np.array_equal(mlp(x, *weights, add=add), add + mlp(x, *weights))


def test_large_gates_do_not_overflow(rng: np.random.Generator, isa: str) -> None:
    weights = network(rng, ("f32", "f32", "f32"), 32, 32)
    x = normal(rng, 4, 32) * np.float32(1e4)
    gate, up = linear(x, list(weights[:2]))
    assert np.abs(gate).max() > 1000
    assert np.isfinite(mlp(x, *weights)).all()
    assert np.allclose(mlp(x, *weights), reference.mlp(x, *weights), rtol=1e-4, atol=1e-5 * np.abs(gate * up).max())


def test_bad_shapes(rng: np.random.Generator) -> None:
    gate, up, down = network(rng, ("q4_0", "q4_0", "q4_0"), 64, 96)
    x = normal(rng, 2, 64)
    experts = published(rng, "q4_0", 96, 64, experts=2).matrix
    for call in (
        lambda: mlp(x[:, :32].copy(), gate, up, down),
        lambda: mlp(x, gate, down, down),
        lambda: mlp(x, gate, up, up),
        lambda: mlp(x, experts, experts, down),
        lambda: mlp(x, gate, up, down, add=x[:1]),
    ):
        with pytest.raises(KernelArgumentError, match=r"^\[mlp\]"):
            call()
