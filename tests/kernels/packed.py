"""Random weights as published, packed, and as float values: what the tests of weights and products share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from finback.kernels import Matrix, pack
from finback.weights.formats import FORMATS, MATRIX_FORMATS, dequantize

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

FORMAT_NAMES = MATRIX_FORMATS
INTEGER_FORMATS = tuple(f for f in FORMAT_NAMES if FORMATS[f].activation == "int8")
FLOAT_FORMATS = tuple(f for f in FORMAT_NAMES if f not in INTEGER_FORMATS)

# Where a published block keeps its float16 numbers.
_HALVES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q2_k": (80, 82), "q3_k": (108,),
    "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "mxfp4": (),
}  # fmt: skip


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


@dataclass
class Published:
    """A weight [experts, rows, cols] in published bytes, as a reader would hand it over."""

    format: str
    rows: int
    cols: int
    experts: int
    source: Bytes
    scales: Floats | None = None

    @cached_property
    def values(self) -> Floats:
        """[experts, rows, cols], by the decoder of the weights room."""
        values = dequantize(self.format, self.source, (self.experts, self.rows, self.cols))
        if self.scales is None:
            return values
        wide = np.repeat(self.scales, 128, axis=1)[:, : self.cols]
        return values * wide.reshape(values.shape)

    def pack(self) -> Bytes:
        return pack(self.format, self.source, self.rows, self.cols, experts=self.experts, scales=self.scales)

    @cached_property
    def matrix(self) -> Matrix:
        return Matrix(self.format, self.rows, self.cols, self.pack(), self.experts)


def _integer_blocks(rng: np.random.Generator, format: str, blocks: int) -> Bytes:
    raw = rng.integers(0, 256, (blocks, FORMATS[format].block_bytes), dtype=np.uint8)
    for at in _HALVES[format]:
        halves = rng.uniform(0.001, 0.01, blocks) * rng.choice([-1, 1], blocks)
        raw[:, at : at + 2] = halves.astype(np.float16)[:, None].view(np.uint8)
    if format == "mxfp4":
        raw[:, 0] = rng.integers(115, 125, blocks)
    return raw.reshape(-1)


def _float_bytes(rng: np.random.Generator, format: str, count: int) -> Bytes:
    values = rng.standard_normal(count).astype(np.float32) / 10
    if format == "f32":
        return values.view(np.uint8)
    if format == "f16":
        return values.astype(np.float16).view(np.uint8)
    if format == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    signs = rng.integers(0, 2, count, dtype=np.uint8) << 7
    return np.asarray(rng.integers(0, 0x7F, count, dtype=np.uint8) | signs)  # every code but NaN


def published(rng: np.random.Generator, format: str, rows: int, cols: int, experts: int = 1) -> Published:
    """A random weight; every code occurs."""
    count = experts * rows * cols
    if format in INTEGER_FORMATS:
        source = _integer_blocks(rng, format, count // FORMATS[format].block_elements)
        return Published(format, rows, cols, experts, source)
    source = _float_bytes(rng, format, count)
    if format != "f8_e4m3":
        return Published(format, rows, cols, experts, source)
    scales = rng.uniform(1e-4, 1e-3, (experts * rows, -(-cols // 128))).astype(np.float32)
    return Published(format, rows, cols, experts, source, scales)


def extreme(format: str, rows: int, cols: int, byte: int) -> Published:
    """A weight whose codes are all the lowest (byte 0) or all the highest (byte 255), with plain scales."""
    raw = np.full((rows * cols // FORMATS[format].block_elements, FORMATS[format].block_bytes), byte, np.uint8)
    for at in _HALVES[format]:
        raw[:, at : at + 2] = np.array([0.5], np.float16).view(np.uint8)
    if format == "mxfp4":
        raw[:, 0] = 127
    return Published(format, rows, cols, 1, raw.reshape(-1))


def shapes(format: str) -> list[tuple[int, int]]:
    """Odd (rows, cols) that the format allows."""
    if format in FLOAT_FORMATS:
        return [(1, 1), (7, 24), (8, 64), (9, 100), (40, 130), (24, 288)]
    block = FORMATS[format].block_elements
    cols = [256, 512, 1280] if block == 256 else [32, 64, 288, 1056]
    return [(rows, c) for rows, c in zip([1, 7, 9, 40], cols * 2, strict=False)]
