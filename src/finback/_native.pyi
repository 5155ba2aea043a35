"""Types of the native module, which only finback.kernels imports; documentation is there."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Ints = NDArray[np.int32]
_Slots = NDArray[np.int64]

# ---- system

def threads() -> int: ...
def set_threads(count: int) -> None: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def select_isa(name: str) -> str: ...

# ---- attention, norms, choices

def attention(
    q: _Floats,
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
    *,
    block_tables: _Ints,
    seq_ids: _Ints,
    positions: _Ints,
    scale: float,
) -> _Floats: ...
def mla_attention(
    q_latent: _Floats,
    q_rope: _Floats,
    cache: NDArray[Any],
    *,
    block_tables: _Ints,
    seq_ids: _Ints,
    positions: _Ints,
    scale: float,
) -> _Floats: ...
def mla_prefill(
    q: _Floats, k_nope: _Floats, k_rope: _Floats, v: _Floats, *, first_position: int, scale: float
) -> _Floats: ...
def store_rows(cache: NDArray[Any], values: _Floats, slots: _Slots) -> None: ...
def load_rows(cache: NDArray[Any], slots: _Slots) -> _Floats: ...
def rms_norm(x: _Floats, weight: _Floats, eps: float) -> _Floats: ...
def rope(x: _Floats, cos: _Floats, sin: _Floats, *, interleaved: bool, start: int = 0) -> None: ...
def sample(
    logits: _Floats, *, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int: ...
def top_logprobs(logits: _Floats, k: int) -> tuple[_Ints, _Floats]: ...
def logprob_of(logits: _Floats, id: int) -> float: ...
def route(
    logits: _Floats,
    *,
    bias: _Floats | None,
    scoring: str,
    top_k: int,
    groups: int,
    top_groups: int,
    group_rule: str,
    normalize: bool,
    scale: float,
) -> tuple[_Ints, _Floats]: ...
