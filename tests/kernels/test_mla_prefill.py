"""Expanded latent attention against its twin, and under rule R1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import reference
from tests.kernels.paged import normal

TOLERANCE = 3e-6
# heads, widths of k_nope, k_rope and v
SHAPES = [(4, 128, 64, 128), (3, 16, 8, 24), (2, 13, 6, 11), (2, 8, 0, 8)]


def arguments(rng: np.random.Generator, shape: tuple[int, int, int, int], queries: int, context: int) -> dict[str, Any]:
    heads, nope, rope, width = shape
    return {
        "q": normal(rng, queries, heads, nope + rope),
        "k_nope": normal(rng, context, heads, nope),
        "k_rope": normal(rng, context, rope),
        "v": normal(rng, context, heads, width),
        "scale": (nope + rope) ** -0.5,
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("first", "queries"), [(0, 1), (0, 70), (200, 130), (63, 2), (255, 3)])
def test_equals_the_twin(
    isa: str, rng: np.random.Generator, shape: tuple[int, int, int, int], first: int, queries: int
) -> None:
    case = arguments(rng, shape, queries, first + queries)
    actual = kernels.mla_prefill(**case, first_position=first)
    expected = reference.mla_prefill(**case, first_position=first)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 7, 96, 200])
def test_chunks_and_threads(isa: str, rng: np.random.Generator, chunk: int, threads: int) -> None:
    case = arguments(rng, (3, 16, 8, 40), 300, 300)
    whole = kernels.mla_prefill(**case, first_position=0)
    kernels.set_threads(threads)
    np.testing.assert_array_equal(kernels.mla_prefill(**case, first_position=0), whole)
    for start in range(0, 300, chunk):
        stop = min(start + chunk, 300)
        seen = {name: case[name][:stop] for name in ("k_nope", "k_rope", "v")}
        part = kernels.mla_prefill(case["q"][start:stop], **seen, first_position=start, scale=case["scale"])
        np.testing.assert_array_equal(part, whole[start:stop])


def test_no_tokens(isa: str, rng: np.random.Generator) -> None:
    case = arguments(rng, (2, 8, 4, 6), 0, 5)
    assert kernels.mla_prefill(**case, first_position=5).shape == (0, 2, 6)


BAD: list[tuple[str, dict[str, Any]]] = [
    ("positions", {"first_position": 3}),
    ("positions", {"first_position": -1}),
    ("positions", {"first_position": 2**62}),
    ("k_rope", {"k_rope": np.zeros((5, 3), np.float32)}),
    ("q", {"q": np.zeros((2, 2, 7), np.float32)}),
    ("v", {"v": np.zeros((5, 1, 6), np.float32)}),
    ("v", {"v": np.zeros((5, 2, 0), np.float32)}),
]


@pytest.mark.parametrize(("names", "change"), BAD)
def test_refuses(names: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "q": np.zeros((2, 2, 5), np.float32),
        "k_nope": np.zeros((4, 2, 2), np.float32),
        "k_rope": np.zeros((4, 3), np.float32),
        "v": np.zeros((4, 2, 6), np.float32),
        "first_position": 2,
    }
    assert kernels.mla_prefill(**good, scale=1.0).shape == (2, 2, 6)
    with pytest.raises(KernelArgumentError, match=rf"\[mla_prefill\].*{names}"):
        kernels.mla_prefill(**{**good, **change}, scale=1.0)
