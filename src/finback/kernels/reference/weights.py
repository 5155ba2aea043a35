"""Twins of the weight kernels, and the tile layout written out a second time.

Values of published blocks are not this file's matter: a :class:`Matrix` is read through
:func:`finback.kernels.unpack`, which is tested against finback.weights.formats.dequantize, itself tested
against files that others wrote.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finback.kernels.products import Norm
from finback.kernels.reference.attention import rms_norm
from finback.kernels.weights import Matrix, unpack

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

GROUP = 32  # activations that share an int8 scale
FLOAT_FORMATS = frozenset({"f32", "f16", "bf16", "f8_e4m3"})
_SMALLEST = np.float32(1e-30)  # a group below this counts as zero


def quantize_activations(x: Floats) -> Floats:
    """The values that the integer products see: each group of 32 rounded to a multiple of its largest / 127."""
    groups = x.reshape(*x.shape[:-1], -1, GROUP)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    live = largest >= _SMALLEST
    inverse = np.where(live, np.float32(127) / np.where(live, largest, 1), 0).astype(np.float32)
    codes = np.rint(groups * inverse)
    scale = np.where(live, largest / np.float32(127), 0)
    return (codes.astype(np.float64) * scale).reshape(x.shape)  # type: ignore[no-any-return]


def _normed(x: Floats, norm: Norm | None) -> Floats:
    return x if norm is None else rms_norm(x, *norm)


def _product(x: Floats, m: Matrix, expert: int = 0) -> NDArray[np.float64]:
    seen = x if m.format in FLOAT_FORMATS else quantize_activations(x)
    return seen.astype(np.float64) @ unpack(m, expert=expert).astype(np.float64).T


def linear(
    x: Floats,
    weights: Sequence[Matrix],
    *,
    norm: Norm | None = None,
    bias: Sequence[Floats | None] | None = None,
    add: Floats | None = None,
) -> list[Floats]:
    """Twin of finback.kernels.linear: exact sums of the same rounded activations."""
    x = _normed(x, norm)
    results = []
    for i, m in enumerate(weights):
        y = _product(x, m)
        offset = None if bias is None else bias[i]
        y = y if offset is None else y + offset
        results.append((y if add is None else y + add).astype(np.float32))
    return results


def head_linear(x: Floats, w: Matrix) -> Floats:
    """Twin of finback.kernels.head_linear."""
    heads = [_product(x if x.ndim == 2 else x[:, h], w, h) for h in range(w.experts)]
    return np.stack(heads, axis=1).astype(np.float32)


def _gated(x: Floats, gate: Matrix, up: Matrix, down: Matrix, expert: int = 0) -> NDArray[np.float64]:
    g, u = _product(x, gate, expert), _product(x, up, expert)
    with np.errstate(over="ignore"):
        hidden = g / (1 + np.exp(-g)) * u
    return _product(hidden.astype(np.float32), down, expert)


def mlp(
    x: Floats, gate: Matrix, up: Matrix, down: Matrix, *, norm: Norm | None = None, add: Floats | None = None
) -> Floats:
    """Twin of finback.kernels.mlp."""
    y = _gated(_normed(x, norm), gate, up, down)
    return (y if add is None else y + add).astype(np.float32)


def moe(
    x: Floats,
    ids: NDArray[np.int32],
    weights: Floats,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    *,
    shared: tuple[Matrix, Matrix, Matrix] | None = None,
    norm: Norm | None = None,
    add: Floats | None = None,
) -> Floats:
    """Twin of finback.kernels.moe."""
    x = _normed(x, norm)
    y = np.zeros((len(x), down.rows)) if add is None else add.astype(np.float64)
    for token, chosen in enumerate(ids):
        for j, expert in enumerate(chosen):
            y[token] += weights[token, j] * _gated(x[token : token + 1], gate, up, down, int(expert))[0]
    if shared is not None and len(x):
        y += _gated(x, *shared)
    return y.astype(np.float32)
