"""Root-mean-square norm and rotary position embedding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finback import _native

Floats = NDArray[np.float32]


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """``weight * (x / sqrt(mean(x^2) + eps))`` over the last axis (Zhang and Sennrich, 2019).

    x float32 [..., d], weight float32 [d]. Returns a new array of x's shape.
    """
    return _native.rms_norm(x, weight, eps)


def rope(x: Floats, cos: Floats, sin: Floats, *, interleaved: bool, start: int = 0) -> None:
    """Rotate elements ``start`` to ``start + r`` of every head of x, in place (Su et al., 2021).

    x float32 [n, heads, d]; cos and sin float32 [n, r/2]. The pairs are (2i, 2i + 1) if ``interleaved``,
    else (i, i + r/2); a pair (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    _native.rope(x, cos, sin, interleaved=interleaved, start=start)
