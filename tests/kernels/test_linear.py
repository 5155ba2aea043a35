"""Products with packed weights: within the format's tolerance of exact ones, equal to the twin, and rule R1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import Matrix, linear, reference
from finback.weights.formats import product_ceiling, product_limit
from tests.kernels.packed import FORMAT_NAMES, INTEGER_FORMATS, Floats, extreme, normal, published, shapes

# What float32 sums may lose against the twin's exact sums of the same rounded activations, relative to the sums' size.
TWIN_TOLERANCE = 2e-6
COUNTS = [0, 1, 2, 3, 4, 5, 6, 7, 17, 22, 64]


def size_of_sums(values: Floats, x: Floats) -> Floats:
    """Norm of a weight's row times norm of a token: [n, rows]."""
    return np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(values, axis=1)


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_within_the_formats_tolerance(rng: np.random.Generator, isa: str, format: str) -> None:
    for rows, cols in shapes(format):
        w = published(rng, format, rows, cols)
        for n in (1, 5):
            x = normal(rng, n, cols)
            (y,) = linear(x, [w.matrix])
            error = np.abs(y - x.astype(np.float64) @ w.values[0].astype(np.float64).T)
            assert (error <= product_limit(format, w.values[0], x)).all()


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_like_the_twin(rng: np.random.Generator, isa: str, format: str) -> None:
    for rows, cols in shapes(format):
        w = published(rng, format, rows, cols)
        x = normal(rng, 6, cols)
        error = np.abs(linear(x, [w.matrix])[0] - reference.linear(x, [w.matrix])[0])
        assert (error <= TWIN_TOLERANCE * np.sqrt(cols) * size_of_sums(w.values[0], x)).all()


@pytest.mark.parametrize("format", INTEGER_FORMATS)
@pytest.mark.parametrize("byte", [0, 255])
def test_extreme_codes_do_not_overflow(isa: str, format: str, byte: int) -> None:
    """Lowest and highest codes against activations that all have the largest magnitude, in patterns of signs."""
    w = extreme(format, 8, 256, byte)
    k = np.arange(256)
    x = np.stack([np.ones(256), -np.ones(256), 1 - 2.0 * (k % 2), 1 - k // 2 % 2 * 2.0]).astype(np.float32)
    (y,) = linear(x, [w.matrix])
    exact = x.astype(np.float64) @ w.values[0].astype(np.float64).T
    assert np.allclose(y, exact, rtol=1e-6, atol=1e-6 * np.abs(w.values[0]).sum(axis=1).max())


@pytest.mark.parametrize("n", [1, 9])
def test_every_fp8_number_is_exact(isa: str, n: int) -> None:
    """Subnormal ones, too: each code multiplied with 1 and added to zeros."""
    codes = np.arange(256, dtype=np.uint8)
    scales = np.full((1, 2), 0.5, np.float32)
    w = Matrix("f8_e4m3", 1, 256, kernels.pack("f8_e4m3", codes, 1, 256, scales=scales))
    ones = np.eye(256, dtype=np.float32)
    products = np.concatenate([linear(ones[i : i + n], [w])[0] for i in range(0, 256, n)])[:, 0]
    magnitude = codes & 0x7F
    numbers = np.where(magnitude < 8, magnitude * 2.0**-9, (8 + magnitude % 8) * 2.0 ** (magnitude // 8 - 10.0))
    assert np.array_equal(products, np.where(codes < 128, 0.5, -0.5) * numbers)


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_a_row_depends_on_itself_alone(rng: np.random.Generator, isa: str, format: str) -> None:
    """R1: bit for bit the same alone, among others, and on any number of threads."""
    rows, cols = 41, 512
    w = published(rng, format, rows, cols).matrix
    x = normal(rng, 64, cols)
    alone = np.concatenate([linear(x[i : i + 1], [w])[0] for i in range(len(x))])
    for n in COUNTS:
        for start in (0, 64 - n):
            assert np.array_equal(linear(x[start : start + n], [w])[0], alone[start : start + n])


@pytest.mark.parametrize("format", ["q4_0", "q4_k", "q6_k", "q8_0", "bf16", "f8_e4m3"])
def test_threads_change_nothing(rng: np.random.Generator, format: str) -> None:
    w = published(rng, format, 1000, 512).matrix
    x = normal(rng, 70, 512)
    results = []
    for threads in (1, 2, 3):
        kernels.set_threads(threads)
        results += [linear(x, [w])[0], np.concatenate([linear(x[:1], [w])[0], linear(x[1:], [w])[0]])]
    assert all(np.array_equal(y, results[0]) for y in results)


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_streams_change_nothing(rng: np.random.Generator, isa: str, format: str) -> None:
    """207 row blocks by one thread: items of eight pairs, and one of four, two, one and half a pair."""
    w = published(rng, format, 1653, 512).matrix
    x = normal(rng, 20, 512)
    (expected,) = linear(x, [w])
    previous = kernels.select_streams(1)
    for streams in (1, 8):
        kernels.select_streams(streams)
        for n in (1, 2, 3, 4, 5, 7):
            assert np.array_equal(linear(x[:n], [w])[0], expected[:n])
    kernels.select_streams(previous)


@pytest.mark.parametrize("format", FORMAT_NAMES)
def test_instruction_sets_agree(rng: np.random.Generator, format: str) -> None:
    w = published(rng, format, 24, 512)
    x = normal(rng, 5, 512)
    results = {}
    for name in kernels.available_isas():
        previous = kernels.select_isa(name)
        (results[name],) = linear(x, [w.matrix])
        kernels.select_isa(previous)
    for y in results.values():
        assert (np.abs(y - results["scalar"]) <= 1e-6 * size_of_sums(w.values[0], x)).all()


def test_long_rows_and_many_tokens(rng: np.random.Generator, isa: str) -> None:
    """More columns and tokens than any block that the kernels cut."""
    for format in ("q4_0", "q4_k", "q5_1", "q6_k", "q8_0", "mxfp4", "f8_e4m3", "bf16"):
        w = published(rng, format, 24, 4352)
        x = normal(rng, 150, 4352)
        (y,) = linear(x, [w.matrix])
        exact = x.astype(np.float64) @ w.values[0].astype(np.float64).T
        assert (np.abs(y - exact) <= product_limit(format, w.values[0], x)).all()
        assert np.array_equal(linear(x[149:], [w.matrix])[0], y[149:])


def test_several_weights_share_the_input(rng: np.random.Generator) -> None:
    weights = [published(rng, f, rows, 256).matrix for f, rows in [("q4_k", 33), ("q6_k", 8), ("f32", 5), ("q8_0", 1)]]
    x = normal(rng, 3, 256)
    bias = [normal(rng, 33), None, normal(rng, 5), None]
    together = linear(x, weights, bias=bias)
    for y, w, b in zip(together, weights, bias, strict=True):
        (plain,) = linear(x, [w])
        assert np.array_equal(y, plain if b is None else plain + b)


def test_bias_then_residual(rng: np.random.Generator) -> None:
    w = published(rng, "q4_0", 19, 64).matrix
    x, bias, add = normal(rng, 6, 64), normal(rng, 19), normal(rng, 6, 19)
    (plain,) = linear(x, [w])
    assert np.array_equal(linear(x, [w], bias=[bias], add=add)[0], plain + bias + add)


@pytest.mark.parametrize("format", ["q4_0", "q4_1", "q6_k", "q8_0", "f32", "f8_e4m3"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(rng: np.random.Generator, isa: str, format: str, bad: float) -> None:
    w = published(rng, format, 16, 256).matrix
    x = normal(rng, 3, 256)
    x[1, 77] = bad
    (y,) = linear(x, [w])
    assert not np.isfinite(y[1]).any()
    assert np.array_equal(y[[0, 2]], linear(np.delete(x, 1, 0), [w])[0])


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-31, 1e30])
def test_tiny_and_huge_activations(rng: np.random.Generator, isa: str, scale: float) -> None:
    w = published(rng, "q4_1", 16, 64)
    x = normal(rng, 3, 64) * np.float32(scale)
    (y,) = linear(x, [w.matrix])
    error = np.abs(y - x.astype(np.float64) @ w.values[0].astype(np.float64).T)
    assert (error <= product_ceiling("q4_1", w.values[0], x)).all()


def bad_calls(rng: np.random.Generator) -> dict[str, Any]:
    w, other = published(rng, "q4_0", 9, 64).matrix, published(rng, "q4_0", 9, 32).matrix
    experts = published(rng, "q4_0", 9, 64, experts=2).matrix
    x = normal(rng, 2, 64)
    return {
        "no weights": lambda: linear(x, []),
        "other columns": lambda: linear(x, [w, other]),
        "experts": lambda: linear(x, [experts]),
        "float64": lambda: linear(x.astype(np.float64), [w]),  # type: ignore[arg-type]
        "a vector": lambda: linear(x[0], [w]),
        "gaps": lambda: linear(normal(rng, 2, 128)[:, ::2], [w]),
        "short bias": lambda: linear(x, [w], bias=[np.zeros(8, np.float32)]),
        "too few biases": lambda: linear(x, [w, w], bias=[None]),
        "residual of another shape": lambda: linear(x, [w], add=np.zeros((2, 8), np.float32)),
        "residual for two": lambda: linear(x, [w, w], add=np.zeros((2, 9), np.float32)),
    }


@pytest.mark.parametrize("name", bad_calls(np.random.default_rng(0)))
def test_bad_arguments(rng: np.random.Generator, name: str) -> None:
    with pytest.raises(KernelArgumentError, match=r"^\[linear\]"):
        bad_calls(rng)[name]()
