"""Rows of a cache: what goes in comes out rounded to the cache's type, and only there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import reference
from tests.kernels.paged import CACHE_TYPES, normal

AWKWARD = np.array(
    [0.0, -0.0, 1e-8, -6e-8, 3e-6, 65504, 65519, 65520, -1e6, 3.4e38, np.inf, -np.inf, np.nan, 1e-45, 1.0009766],
    np.float32,
)


@pytest.mark.parametrize("dtype", CACHE_TYPES)
@pytest.mark.parametrize("width", [(1,), (7,), (8,), (2, 12), (576,)])
def test_equals_the_twin(isa: str, rng: np.random.Generator, dtype: type[Any], width: tuple[int, ...]) -> None:
    values = normal(rng, 9, *width) * np.float32(100)
    slots = rng.permutation(20)[:9].astype(np.int64)
    actual, expected = np.zeros((5, 4, *width), dtype), np.zeros((5, 4, *width), dtype)
    kernels.store_rows(actual, values, slots)
    reference.store_rows(expected, values, slots)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(kernels.load_rows(actual, slots), reference.load_rows(expected, slots))


@pytest.mark.parametrize("dtype", CACHE_TYPES)
def test_awkward_values(isa: str, dtype: type[Any]) -> None:
    cache, expected = np.zeros((1, 1, len(AWKWARD)), dtype), np.zeros((1, 1, len(AWKWARD)), dtype)
    slots = np.zeros(1, np.int64)
    kernels.store_rows(cache, AWKWARD[None], slots)
    reference.store_rows(expected, AWKWARD[None], slots)
    loaded = kernels.load_rows(cache, slots)[0]
    np.testing.assert_array_equal(loaded, reference.load_rows(expected, slots)[0])
    assert np.isnan(loaded).sum() == 1
    assert np.isfinite(loaded).sum() == len(AWKWARD) - (3 if dtype is np.float32 else 1)


@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
def test_every_half_survives_the_round_trip(isa: str, dtype: type[Any]) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    cache = bits.view(dtype).reshape(256, 1, 256)
    slots = np.arange(256)
    values = kernels.load_rows(cache, slots)
    again = np.empty_like(cache)
    kernels.store_rows(again, values, slots)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(again.view(np.uint16)[:, 0][finite], cache.view(np.uint16)[:, 0][finite])


@pytest.mark.parametrize("threads", [1, 3])
def test_many_rows(isa: str, rng: np.random.Generator, threads: int) -> None:
    kernels.set_threads(threads)
    cache = normal(rng, 100, 8, 300)
    slots = rng.integers(0, 800, 1001)
    np.testing.assert_array_equal(kernels.load_rows(cache, slots), cache.reshape(800, 300)[slots])


def test_no_rows() -> None:
    cache = np.zeros((2, 2, 3), np.float16)
    none = np.zeros(0, np.int64)
    kernels.store_rows(cache, np.zeros((0, 3), np.float32), none)
    assert kernels.load_rows(cache, none).shape == (0, 3)


@pytest.mark.parametrize("slot", [-1, 4, 2**62])
def test_refuses_slots_outside(slot: int) -> None:
    cache, slots = np.zeros((2, 2, 3), np.float32), np.array([slot])
    with pytest.raises(KernelArgumentError, match=r"\[store_rows\] slots"):
        kernels.store_rows(cache, np.zeros((1, 3), np.float32), slots)
    with pytest.raises(KernelArgumentError, match=r"\[load_rows\] slots"):
        kernels.load_rows(cache, slots)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((1, 4), np.float32),
        np.zeros((1, 3, 1), np.float32),
        np.zeros((1, 3), np.float64),
        np.zeros((1, 6), np.float32)[:, ::2],
    ],
)
def test_refuses_values_that_do_not_fit(values: Any) -> None:
    with pytest.raises(KernelArgumentError, match=r"\[store_rows\] values"):
        kernels.store_rows(np.zeros((2, 2, 3), np.float32), values, np.zeros(1, np.int64))


def test_refuses_a_cache_that_would_be_copied() -> None:
    cache = np.zeros((2, 2, 6), np.float32)[:, :, ::2]
    with pytest.raises(KernelArgumentError, match=r"\[store_rows\] cache"):
        kernels.store_rows(cache, np.zeros((1, 3), np.float32), np.zeros(1, np.int64))
