"""NumPy twins of attention, KV rows, norms, RoPE, routing and sampling."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Slots = NDArray[np.int64]
Wide = NDArray[np.float64]

_LARGEST_BFLOAT16 = np.float32(3.38953139e38)
_LARGEST_FLOAT16 = np.float32(65504)


# ---- rows of a cache -----------------------------------------------------------------------------


def _to_bfloat16(x: Floats) -> NDArray[np.uint16]:
    bits = np.clip(x, -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def _widen(rows: NDArray[Any]) -> Floats:
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)


def store_rows(cache: NDArray[Any], values: Floats, slots: Slots) -> None:
    """Write ``values[i]`` to slot ``slots[i]``, rounded to the cache's type."""
    rows = cache.reshape(-1, *cache.shape[2:])
    if cache.dtype == np.uint16:
        rows[slots] = _to_bfloat16(values)
    elif cache.dtype == np.float16:
        rows[slots] = np.clip(values, -_LARGEST_FLOAT16, _LARGEST_FLOAT16).astype(np.float16)
    else:
        rows[slots] = values


def load_rows(cache: NDArray[Any], slots: Slots) -> Floats:
    """Read slots as float32."""
    return _widen(cache.reshape(-1, *cache.shape[2:])[slots])


# ---- attention -----------------------------------------------------------------------------------


def _context(cache: NDArray[Any], table: Ints, length: int) -> Floats:
    """Positions 0 to ``length - 1`` of one sequence."""
    block_size = cache.shape[1]
    positions = np.arange(length)
    blocks = table[positions // block_size].astype(np.int64)
    return load_rows(cache, blocks * block_size + positions % block_size)


def _softmax(scores: Wide) -> Wide:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _attend(q: Floats, k: Floats, v: Floats, scale: float) -> Floats:
    """One token: q [H, D] over k [T, H, D] and v [T, H, Dv]."""
    scores = np.einsum("hd,thd->ht", q, k, dtype=np.float64) * scale
    mixed: Wide = np.einsum("ht,thd->hd", _softmax(scores), v, dtype=np.float64)
    return mixed.astype(np.float32)


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
    """Grouped-query attention over a paged cache."""
    group = q.shape[1] // k_cache.shape[2]
    out = np.empty((*q.shape[:2], v_cache.shape[3]), np.float32)
    for i, (seq, position) in enumerate(zip(seq_ids, positions, strict=True)):
        k = np.repeat(_context(k_cache, block_tables[seq], position + 1), group, axis=1)
        v = np.repeat(_context(v_cache, block_tables[seq], position + 1), group, axis=1)
        out[i] = _attend(q[i], k, v, scale)
    return out


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
    """Absorbed multi-head latent attention: the latent is both key and value of every head."""
    keys = cache[:, :, None, :]
    values = np.ascontiguousarray(keys[..., : q_latent.shape[2]])
    q = np.concatenate([q_latent, q_rope], axis=-1)
    return attention(q, keys, values, block_tables=block_tables, seq_ids=seq_ids, positions=positions, scale=scale)


def mla_prefill(q: Floats, k_nope: Floats, k_rope: Floats, v: Floats, *, first_position: int, scale: float) -> Floats:
    """Expanded multi-head latent attention of one sequence."""
    shared = np.broadcast_to(k_rope[:, None, :], (*k_nope.shape[:2], k_rope.shape[1]))
    k = np.concatenate([k_nope, shared], axis=-1)
    out = np.empty((*q.shape[:2], v.shape[2]), np.float32)
    for i, query in enumerate(q):
        context = first_position + i + 1
        out[i] = _attend(query, k[:context], v[:context], scale)
    return out


# ---- norms and rotations -------------------------------------------------------------------------


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last axis."""
    wide = x.astype(np.float64)
    scaled = wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + eps)
    result: Wide = weight * scaled
    return result.astype(np.float32)


def rope(x: Floats, cos: Floats, sin: Floats, *, interleaved: bool, start: int = 0) -> None:
    """Rotate pairs of elements of every head, in place."""
    width = 2 * cos.shape[1]
    part = x[..., start : start + width]
    a, b = (part[..., 0::2], part[..., 1::2]) if interleaved else np.split(part, 2, axis=-1)
    c, s = cos[:, None, :], sin[:, None, :]
    a[...], b[...] = a * c - b * s, b * c + a * s


# ---- choices -------------------------------------------------------------------------------------


def _descending(values: NDArray[Any]) -> NDArray[np.int64]:
    """Indices by descending value, smaller index first among equals."""
    return np.argsort(-values, kind="stable")


def sample(logits: Floats, *, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """Draw a token: temperature, then top-k, top-p, min-p, then the inverse of the cumulative weights."""
    if temperature == 0:
        return int(np.argmax(logits))
    order = _descending(logits)
    distance = (logits[order] - logits[order[0]]) / np.float32(temperature)
    weights = np.where(distance > -87, np.exp(distance.astype(np.float64)), 0)
    kept = min(top_k or len(order), int(np.count_nonzero(weights)))
    before = np.cumsum(weights) - weights
    if top_p < 1:
        kept = min(kept, int(np.count_nonzero(before < np.float32(top_p) * weights[:kept].sum())))
    kept = min(kept, int(np.count_nonzero(weights >= min_p)))
    cumulative = np.cumsum(weights[:kept])
    drawn = int(np.count_nonzero(cumulative <= uniform * cumulative[-1]))
    return int(order[min(drawn, kept - 1)])


def _log_softmax(logits: Floats) -> Wide:
    wide = logits.astype(np.float64) - float(logits.max())
    return np.asarray(wide - np.log(np.exp(wide).sum()))


def top_logprobs(logits: Floats, k: int) -> tuple[Ints, Floats]:
    """The ``k`` likeliest tokens and their log-probabilities."""
    ids = _descending(logits)[:k]
    return ids.astype(np.int32), _log_softmax(logits)[ids].astype(np.float32)


def logprob_of(logits: Floats, id: int) -> float:
    """Log-probability of one token."""
    return float(_log_softmax(logits)[id])


def _in_best_groups(choice: Wide, groups: int, top_groups: int, rule: Literal["max", "top2"]) -> Wide:
    """One token's scores, with -inf for the experts outside its best groups."""
    members = np.sort(choice.reshape(groups, -1), axis=-1)
    ranking = members[:, -1] if rule == "max" else members[:, -1] + members[:, -2]
    chosen = np.zeros(groups, bool)
    chosen[_descending(ranking)[:top_groups]] = True
    return np.where(np.repeat(chosen, choice.size // groups), choice, -np.inf)


def route(
    logits: Floats,
    *,
    bias: Floats | None,
    scoring: Literal["softmax", "sigmoid"],
    top_k: int,
    groups: int,
    top_groups: int,
    group_rule: Literal["none", "max", "top2"],
    normalize: bool,
    scale: float,
) -> tuple[Ints, Floats]:
    """Choose each token's experts and their weights."""
    wide = logits.astype(np.float64)
    scores = _softmax(wide) if scoring == "softmax" else 1 / (1 + np.exp(-wide))
    choice = scores if bias is None else scores + bias
    ids = np.empty((len(logits), top_k), np.int32)
    for i, row in enumerate(choice):
        if group_rule != "none":
            row = _in_best_groups(row, groups, top_groups, group_rule)
        ids[i] = _descending(row)[:top_k]
    weights = np.take_along_axis(scores, ids, axis=1)
    if normalize:
        weights = weights / (weights.sum(axis=1, keepdims=True) + 1e-20)
    return ids, (weights * scale).astype(np.float32)
