"""NumPy twins of the kernels: the same names and arguments, written to be read.

They are the specification that the tests hold the native kernels to, in float64 where it matters, and slow.
"""

from finback.kernels.reference.attention import (
    attention,
    load_rows,
    logprob_of,
    mla_attention,
    mla_prefill,
    rms_norm,
    rope,
    route,
    sample,
    store_rows,
    top_logprobs,
)
from finback.kernels.reference.weights import head_linear, linear, mlp, moe, quantize_activations

__all__ = [
    "attention",
    "head_linear",
    "linear",
    "load_rows",
    "logprob_of",
    "mla_attention",
    "mla_prefill",
    "mlp",
    "moe",
    "quantize_activations",
    "rms_norm",
    "rope",
    "route",
    "sample",
    "store_rows",
    "top_logprobs",
]
