"""Attention over a paged KV cache, expanded MLA attention, and the rows of a cache.

A cache is a C-contiguous array ``[blocks, block_size, ...]`` of float32, float16 or uint16 (the bits of
bfloat16). Position ``p`` of sequence ``s`` lies in row ``p % block_size`` of block
``block_tables[s, p // block_size]``. Only the rows of positions that a token sees are ever read, so the rest may
hold anything.

The softmax runs online over tiles of 64 positions and partial results of 256, both counted from position 0,
in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from finback import _native

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


def attention(
    q: Floats,
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
    *,
    block_tables: Ints,
    seq_ids: Ints,
    positions: Ints,
    scale: float,
) -> Floats:
    """Grouped-query attention: token ``i`` sees positions 0 to ``positions[i]`` of sequence ``seq_ids[i]``.

    q [n, H, D]; k_cache [blocks, block_size, Hkv, D]; v_cache [blocks, block_size, Hkv, Dv] of the same
    type; block_tables int32 [sequences, max_blocks]; seq_ids and positions int32 [n]. Head ``h`` reads key
    head ``h // (H // Hkv)``. Returns ``softmax(scale * q k^T) v`` as float32 [n, H, Dv].

    Raises KernelArgumentError if shapes or types do not fit, H is not a multiple of Hkv, or a token sees a
    position outside its table or a block outside the cache.
    """
    return _native.attention(
        q, k_cache, v_cache, block_tables=block_tables, seq_ids=seq_ids, positions=positions, scale=scale
    )


def mla_attention(
    q_latent: Floats,
    q_rope: Floats,
    cache: NDArray[Any],
    *,
    block_tables: Ints,
    seq_ids: Ints,
    positions: Ints,
    scale: float,
) -> Floats:
    """Multi-head latent attention in absorbed form (DeepSeek-V2, section 2.1.2).

    q_latent [n, H, L] (queries times the key expansion), q_rope [n, H, R], cache [blocks, block_size, L +
    R] holding each position's latent and rotated key. One key serves all heads; its first L elements are
    also the value. Returns the weighted latents, float32 [n, H, L]. Paging arguments and errors as in
    :func:`attention`.
    """
    return _native.mla_attention(
        q_latent, q_rope, cache, block_tables=block_tables, seq_ids=seq_ids, positions=positions, scale=scale
    )


def mla_prefill(q: Floats, k_nope: Floats, k_rope: Floats, v: Floats, *, first_position: int, scale: float) -> Floats:
    """Multi-head latent attention in expanded form, for one sequence whose keys and values are at hand.

    q [m, H, dn + dr], k_nope [context, H, dn], k_rope [context, dr] (shared by the heads), v [context, H,
    dv]. Query ``i`` stands at position ``first_position + i`` and sees the keys up to there; ``context``
    must reach the last query. Returns float32 [m, H, dv].
    """
    return _native.mla_prefill(q, k_nope, k_rope, v, first_position=first_position, scale=scale)


def latents_on_tiles(cache: NDArray[Any], latent: int) -> bool:
    """Whether this processor multiplies such latents on tile registers (AMX).

    ``cache`` [blocks, block_size, latent + R]. Where it does, absorbed attention costs less than expanded attention for
    prompt tokens behind a long context, too.
    """
    return _native.latents_on_tiles(cache, latent)


def store_rows(cache: NDArray[Any], values: Floats, slots: NDArray[np.int64]) -> None:
    """Write ``values[i]`` to slot ``slots[i]`` of ``cache``, where a slot is ``block * block_size + row``.

    values float32 [n, ...] with the cache's axes behind its second; slots int64 [n]; of equal slots the
    last one wins. Rounds to the nearest, ties to even; what is beyond a narrower type's finite range
    becomes its largest finite value (65504 for float16), because one infinity would poison every later
    token; NaN stays NaN.
    """
    _native.store_rows(cache, values, slots)


def load_rows(cache: NDArray[Any], slots: NDArray[np.int64]) -> Floats:
    """Read slots of ``cache`` as float32 [n, ...]."""
    return _native.load_rows(cache, slots)
