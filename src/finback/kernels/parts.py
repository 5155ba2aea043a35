"""Parts of decoder layers, bound to their weights and cache: any number of them run in one call.

Weights that stream by push Python and the checks of arguments out of the caches, and what each call between two
kernels then costs is felt on small models; so what does not change from step to step is checked once, when a part is
made. A part adds to the residual stream, in which a row depends on that row alone and on the cache (rule R1), and gives
bit for bit what the kernels that it joins give:

``GatedNetwork(gate, up, down, norm=)``
    :func:`mlp` of the normalised rows.
``GroupedAttention(weights, k_cache, v_cache, norm=, biases=, q_norm=, k_norm=, interleaved=, scale=)``
    ``weights`` are of q, k, v and o, with a bias or None each. Products of the normalised rows of x;
    :func:`rms_norm` of each head of q and k if asked, :func:`rope` of both, :func:`store_rows` of k and v,
    :func:`attention`; the product with o.
``LatentAttention(q=, kv_a=, k_up=, k_absorb=, v_up=, o=, cache=, norm=, ...)``
    MLA (DeepSeek-V2, section 2.1). q [H * (dn + R), in], kv_a [L + R, in], o [in, H * dv]; for each head as an
    expert k_up [H, dn, L], its transpose k_absorb [H, L, dn], v_up [H, dv, L]; cache [blocks, block_size, L + R];
    ``bottleneck`` (weight, bias or None, norm) stands before q. Products of the normalised rows of x; the last R
    elements of each head of q and of each latent take :func:`rope`, what is before them in the latent
    ``kv_a_norm``; latents go to their slots. Rows of prompts before position ``absorbed_from`` attend by
    :func:`mla_prefill` to keys and values that :func:`head_linear` expands from the cache, all others by
    :func:`mla_attention` between two :func:`head_linear`; either takes few heads or rows at a time where all would
    need more than ``working_bytes``. The product with o.
``RoutedNetwork(router, gate, up, down, shared=, norm=, bias=, scoring=, top_k=, ...)``
    :func:`moe` of the normalised rows, with the experts that :func:`route` picks from the product with the router.

Making a part raises KernelArgumentError where shapes do not fit each other; it keeps its arrays alive.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finback import _native
from finback._native import GatedNetwork, GroupedAttention, LatentAttention, Part, RoutedNetwork

__all__ = ["GatedNetwork", "GroupedAttention", "LatentAttention", "Part", "RoutedNetwork", "run_parts"]


def run_parts(
    parts: Sequence[Part],
    x: NDArray[np.float32],
    *,
    slots: NDArray[np.int64],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    block_tables: NDArray[np.int32],
    seq_ids: NDArray[np.int32],
    positions: NDArray[np.int32],
    prompts: NDArray[np.int32],
) -> NDArray[np.float32]:
    """x float32 [n, hidden] after all parts, one after the other; ``x`` itself stays.

    slots [n] and cos, sin [n, pairs] are of the rows; block_tables, seq_ids and positions as in :func:`attention`;
    prompts [p, 2] holds first row and end of each prompt: consecutive positions of one sequence, in the order of the
    rows.
    Everything is checked before the first part runs.
    """
    return _native.run_parts(
        parts,
        x,
        slots=slots,
        cos=cos,
        sin=sin,
        block_tables=block_tables,
        seq_ids=seq_ids,
        positions=positions,
        prompts=prompts,
    )
