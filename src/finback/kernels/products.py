"""Products with packed weights: plain, per head, and the gated feed-forward networks, dense and of experts.

Integer formats multiply activations that are rounded to int8 per group of 32 columns (scale: largest
magnitude / 127), once per call; inside a group the sum is exact, groups are added in float32 in ascending
order. Float formats multiply in float32, columns in ascending order. So a row of a result never depends on
the other rows (rule R1). Activations that are not finite give results that are not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from finback import _native
from finback._native import Matrix

Floats = NDArray[np.float32]


Norm: TypeAlias = tuple[Floats, float]  # weight [in] and eps: rms_norm is applied to the rows of x on the way


def linear(
    x: Floats,
    weights: Sequence[Matrix],
    *,
    norm: Norm | None = None,
    bias: Sequence[Floats | None] | None = None,
    add: Floats | None = None,
) -> list[Floats]:
    """x float32 [n, in], normalised if asked, times each weight [rows, in] transposed: a list of float32 [n, rows].

    ``bias`` holds one [rows] or None per weight. ``add`` [n, rows] is added to the result (a residual), with
    exactly one weight. The activations are quantised once for all weights.
    """
    return _native.linear(x, weights, norm=norm, bias=bias, add=add)


def head_linear(x: Floats, w: Matrix) -> Floats:
    """Head h of x float32 [n, H, in] times expert h of the weight [H, rows, in]: float32 [n, H, rows].

    x [n, in] is shared by all heads.
    """
    return _native.head_linear(x, w)


def mlp(
    x: Floats, gate: Matrix, up: Matrix, down: Matrix, *, norm: Norm | None = None, add: Floats | None = None
) -> Floats:
    """``down(silu(gate x) * up x)``, plus ``add`` if given: float32 [n, hidden] of x float32 [n, in]."""
    return _native.mlp(x, gate, up, down, norm=norm, add=add)


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
    """``add + sum over j of weights[:, j] * expert ids[:, j] of x + shared of x``, added in this order.

    x float32 [n, in]; ids int32 [n, k] from 0 to experts - 1, repeats allowed; weights float32 [n, k]; gate,
    up, down hold one network per expert, ``shared`` the (gate, up, down) that every token uses. Returns
    float32 [n, hidden].
    """
    return _native.moe(x, ids, weights, gate, up, down, shared=shared, norm=norm, add=add)
