"""Weights as the kernels read them: published blocks to tiles and back, value for value.

A :class:`Matrix` is a weight ``[experts, rows, cols]`` in the tile layout that csrc/formats.h draws: row
blocks of 8 rows, front to back, in exactly the bytes that the published blocks take (rows padded to 8).
Formats: f32 f16 bf16 f8_e4m3 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k mxfp4.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finback import _native
from finback._native import Matrix

__all__ = ["Matrix", "bring_in", "pack", "packed_bytes", "quantize", "take_rows", "unpack"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def packed_bytes(format: str, rows: int, cols: int, experts: int = 1) -> int:
    """Bytes of a weight [experts, rows, cols] in tile layout.

    Raises KernelArgumentError for an unknown format, sizes that are not positive, or ``cols`` that are not
    whole blocks.
    """
    return _native.packed_bytes(format, rows, cols, experts)


def pack(
    format: str,
    source: Bytes,
    rows: int,
    cols: int,
    *,
    experts: int = 1,
    scales: Floats | None = None,
    out: Bytes | None = None,
) -> Bytes:
    """Tiles, uint8 [packed_bytes], of a published weight: no value changes.

    ``source``: uint8 [bytes], row-major published blocks (or plain little-endian numbers for f32, f16, bf16,
    f8_e4m3), the experts one after another. f8_e4m3 takes ``scales``, the multipliers, float32 [experts *
    rows, ceil(cols / 128)]. ``out`` is a uint8 array to fill, and is returned then. Runs on all threads.
    """
    return _native.pack(format, source, rows, cols, experts=experts, scales=scales, out=out)


def quantize(format: Literal["q8_0", "q4_0", "q4_1"], x: Floats) -> tuple[Bytes, float]:
    """float32 [rows, cols] as published blocks (uint8), and the relative squared error of doing so.

    Each block of 32 gets the scale (q4_1: scale and min) of least squared error among some trials around the block's
    largest magnitude. ``x`` must be finite; the error is sum((x - y)^2) / sum(x^2), 0 for a zero input.
    """
    return _native.quantize(format, x)


def unpack(m: Matrix, *, expert: int = 0) -> Floats:
    """The values of one expert, float32 [rows, cols]: bit for bit those of the published blocks."""
    return _native.unpack(m, expert=expert)


def take_rows(m: Matrix, ids: NDArray[np.int64]) -> Floats:
    """Rows ``ids`` (int64 [n], each from 0 to rows - 1) of the first expert, float32 [n, cols]: an embedding."""
    return _native.take_rows(m, ids)


def bring_in(data: Bytes) -> None:
    """Have all pages of a mapped file (uint8 [n]) read and mapped, so that no kernel waits for one. On all threads.

    The system may take them back later. Best effort: what cannot be brought in is read when it is used.
    """
    _native.bring_in(data)
