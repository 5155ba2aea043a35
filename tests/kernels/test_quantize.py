"""Quantising to published blocks: the error that is reported is the error that is made, and it is small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import quantize
from finback.weights.formats import dequantize
from tests.kernels.packed import Floats, normal

FORMATS = ("q8_0", "q4_0", "q4_1")


def relative_error(x: Floats, y: Floats) -> float:
    return float(((x.astype(np.float64) - y) ** 2).sum() / (x.astype(np.float64) ** 2).sum())


def plain(format: str, x: Floats) -> Floats:
    """The usual choice: the largest magnitude (q4_1: the range) decides the scale."""
    blocks = x.reshape(-1, 32)
    if format == "q4_1":
        low, high = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
        step = (high - low) / 15
        return (np.rint((blocks - low) / step) * step + low).reshape(x.shape)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    step = largest / (-8 if format == "q4_0" else 127)
    low, high = (-8, 7) if format == "q4_0" else (-127, 127)
    return (np.clip(np.rint(blocks / step), low, high) * step).reshape(x.shape)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("threads", [1, 3])
def test_reported_error_is_the_real_one(rng: np.random.Generator, isa: str, format: str, threads: int) -> None:
    kernels.set_threads(threads)
    x = normal(rng, 37, 256)
    blocks, error = quantize(format, x)
    y = dequantize(format, blocks, x.shape)
    assert error == pytest.approx(relative_error(x, y), rel=1e-4)


# Squared error against the plain choice of scale, for normal values: the search pays where codes are few.
@pytest.mark.parametrize(("format", "gain"), [("q8_0", 1.0), ("q4_0", 0.90), ("q4_1", 0.90)])
def test_better_than_the_plain_scale(rng: np.random.Generator, isa: str, format: str, gain: float) -> None:
    x = normal(rng, 64, 512)
    _, error = quantize(format, x)
    assert error <= gain * relative_error(x, plain(format, x))


@pytest.mark.parametrize("format", FORMATS)
def test_what_fits_is_kept(rng: np.random.Generator, isa: str, format: str) -> None:
    """Blocks that the format can hold come back unchanged."""
    low, high = {"q8_0": (-127, 128), "q4_0": (-8, 8), "q4_1": (0, 16)}[format]
    codes = rng.integers(low, high, (8, 320)).reshape(-1, 32)
    codes[:, 0], codes[:, 1] = low, high - 1
    x = (codes.reshape(8, 320) * 0.25).astype(np.float32)
    blocks, error = quantize(format, x)
    assert error <= 1e-12
    assert np.allclose(dequantize(format, blocks, x.shape), x, rtol=1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_odd_blocks(isa: str, format: str) -> None:
    x = np.zeros((5, 32), np.float32)
    x[1] = 3.0  # constant
    x[2, 7] = -1.0  # a single value
    x[3] = 1e-38
    x[4] = 1e4
    blocks, _ = quantize(format, x)
    y = dequantize(format, blocks, x.shape)
    assert np.isfinite(y).all()
    assert np.allclose(y[[0, 3]], 0, atol=1e-30)
    assert np.allclose(y[[1, 2, 4]], x[[1, 2, 4]], rtol=1e-3, atol=1e-3)


def test_nothing_and_bad_arguments() -> None:
    blocks, error = quantize("q8_0", np.zeros((0, 64), np.float32))
    assert blocks.shape == (0,)
    assert error == 0.0
    bad: list[tuple[Any, Any]] = [
        ("q4_k", np.zeros((1, 256), np.float32)),
        ("q8_0", np.zeros((1, 33), np.float32)),
        ("q8_0", np.zeros(32, np.float32)),
        ("q8_0", np.zeros((1, 32), np.float64)),
    ]
    for format, x in bad:
        with pytest.raises(KernelArgumentError, match=r"^\[quantize\]"):
            quantize(format, x)
