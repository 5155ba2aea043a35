"""The compute boundary: typed functions over the native module, which nothing else imports.

Every kernel obeys rule R1 (a row's result depends on that row alone: not on its neighbours in the call, the
number of threads, or the chunking). It has a NumPy twin of the same name in
:mod:`finback.kernels.reference`; parts of layers give bit for bit what the kernels that they join give.
"""

from __future__ import annotations

import os

from finback import _native
from finback._native import (
    available_isas,
    int8_rate,
    isa,
    read_bandwidth,
    select_isa,
    select_streams,
    set_threads,
    threads,
)
from finback.errors import ConfigError
from finback.kernels.attention import (
    attention,
    latents_on_tiles,
    load_rows,
    mla_attention,
    mla_prefill,
    store_rows,
)
from finback.kernels.norm_rope import rms_norm, rope
from finback.kernels.parts import GatedNetwork, GroupedAttention, LatentAttention, Part, RoutedNetwork, run_parts
from finback.kernels.products import Norm, head_linear, linear, mlp, moe
from finback.kernels.sample import logprob_of, route, sample, top_logprobs
from finback.kernels.weights import Matrix, bring_in, pack, packed_bytes, quantize, take_rows, unpack

__all__ = [
    "GatedNetwork",
    "GroupedAttention",
    "LatentAttention",
    "Matrix",
    "Norm",
    "Part",
    "RoutedNetwork",
    "attention",
    "available_isas",
    "bring_in",
    "head_linear",
    "int8_rate",
    "isa",
    "latents_on_tiles",
    "linear",
    "load_rows",
    "logprob_of",
    "mla_attention",
    "mla_prefill",
    "mlp",
    "moe",
    "pack",
    "packed_bytes",
    "quantize",
    "read_bandwidth",
    "rms_norm",
    "rope",
    "route",
    "run_parts",
    "sample",
    "select_isa",
    "select_streams",
    "set_threads",
    "store_rows",
    "take_rows",
    "threads",
    "top_logprobs",
    "unpack",
]


def _apply_environment() -> None:
    """Honour FINBACK_ISA: the one setting that must act before the first kernel runs."""
    wanted = os.environ.get("FINBACK_ISA")
    if not wanted:
        return
    if wanted not in _native.available_isas():
        choices = ", ".join(_native.available_isas())
        raise ConfigError(f"FINBACK_ISA={wanted} cannot run here", hint=f"available: {choices}")
    _native.select_isa(wanted)


_apply_environment()
