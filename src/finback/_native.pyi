"""Types of the native module, which only finback.kernels imports; documentation is there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Ints = NDArray[np.int32]
_Slots = NDArray[np.int64]
_Norm = tuple[_Floats, float]

# ---- system

def threads() -> int: ...
def set_threads(count: int) -> None: ...
def isa() -> str: ...
def available_isas() -> list[str]: ...
def select_isa(name: str) -> str: ...
def select_streams(count: int) -> int: ...
def bring_in(data: _Bytes) -> None: ...
def read_bandwidth(bytes: int, seconds: float) -> float: ...
def int8_rate(seconds: float) -> float: ...

# ---- weights and products

class Matrix:
    """A packed weight [experts, rows, cols]; keeps the array of its bytes alive, which may be read-only."""

    def __init__(self, format: str, rows: int, cols: int, data: _Bytes, experts: int = 1) -> None: ...
    @property
    def format(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def experts(self) -> int: ...
    @property
    def data(self) -> _Bytes: ...
    @property
    def nbytes(self) -> int: ...

def packed_bytes(format: str, rows: int, cols: int, experts: int = 1) -> int: ...
def pack(
    format: str,
    source: _Bytes,
    rows: int,
    cols: int,
    *,
    experts: int = 1,
    scales: _Floats | None = None,
    out: _Bytes | None = None,
) -> _Bytes: ...
def quantize(format: str, x: _Floats) -> tuple[_Bytes, float]: ...
def unpack(m: Matrix, *, expert: int = 0) -> _Floats: ...
def take_rows(m: Matrix, ids: _Slots) -> _Floats: ...
def linear(
    x: _Floats,
    weights: Sequence[Matrix],
    *,
    norm: _Norm | None = None,
    bias: Sequence[_Floats | None] | None = None,
    add: _Floats | None = None,
) -> list[_Floats]: ...
def head_linear(x: _Floats, w: Matrix) -> _Floats: ...
def mlp(
    x: _Floats, gate: Matrix, up: Matrix, down: Matrix, *, norm: _Norm | None = None, add: _Floats | None = None
) -> _Floats: ...
def moe(
    x: _Floats,
    ids: _Ints,
    weights: _Floats,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    *,
    shared: tuple[Matrix, Matrix, Matrix] | None = None,
    norm: _Norm | None = None,
    add: _Floats | None = None,
) -> _Floats: ...

# ---- parts of layers

class Part: ...

class GatedNetwork(Part):
    def __init__(self, gate: Matrix, up: Matrix, down: Matrix, *, norm: _Norm) -> None: ...

class GroupedAttention(Part):
    def __init__(
        self,
        weights: tuple[Matrix, Matrix, Matrix, Matrix],
        k_cache: NDArray[Any],
        v_cache: NDArray[Any],
        *,
        norm: _Norm,
        biases: tuple[_Floats | None, _Floats | None, _Floats | None, _Floats | None],
        q_norm: _Norm | None,
        k_norm: _Norm | None,
        interleaved: bool,
        scale: float,
    ) -> None: ...

class LatentAttention(Part):
    def __init__(
        self,
        *,
        q: Matrix,
        kv_a: Matrix,
        k_up: Matrix,
        k_absorb: Matrix,
        v_up: Matrix,
        o: Matrix,
        cache: NDArray[Any],
        norm: _Norm,
        bottleneck: tuple[Matrix, _Floats | None, _Norm] | None,
        kv_a_bias: _Floats | None,
        kv_a_norm: _Norm,
        o_bias: _Floats | None,
        interleaved: bool,
        scale: float,
        absorbed_from: int,
        working_bytes: int,
    ) -> None: ...

class RoutedNetwork(Part):
    def __init__(
        self,
        router: Matrix,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        *,
        shared: tuple[Matrix, Matrix, Matrix] | None,
        norm: _Norm,
        bias: _Floats | None,
        scoring: str,
        top_k: int,
        groups: int,
        top_groups: int,
        group_rule: str,
        normalize: bool,
        scale: float,
    ) -> None: ...

def run_parts(
    parts: Sequence[Part],
    x: _Floats,
    *,
    slots: _Slots,
    cos: _Floats,
    sin: _Floats,
    block_tables: _Ints,
    seq_ids: _Ints,
    positions: _Ints,
    prompts: _Ints,
) -> _Floats: ...

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
def latents_on_tiles(cache: NDArray[Any], latent: int) -> bool: ...
def store_rows(cache: NDArray[Any], values: _Floats, slots: _Slots) -> None: ...
def load_rows(cache: NDArray[Any], slots: _Slots) -> _Floats: ...
def rms_norm(x: _Floats, weight: _Floats, eps: float) -> _Floats: ...
def rope(x: _Floats, cos: _Floats, sin: _Floats, *, interleaved: bool, start: int = 0) -> None: ...
def sample(logits: _Floats, *, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int: ...
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
