"""How much context fits: "auto" settings of the key-value cache become numbers here, before any allocation.

The cache is one pool of blocks for all requests. Its arrays are large but are not backed by memory until a
block is first written, so the plan bounds what may be used, not what is used. What stays in it for later requests
with the same beginning has a bound of its own, so that an idle server does not grow into the whole pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finback import hardware
from finback.config import Settings
from finback.errors import ConfigError, ModelTooLarge

if TYPE_CHECKING:
    from finback.weights.config import ModelConfig

BLOCK_SIZE = 64  # tokens
DEFAULT_CONTEXT = 32768  # tokens: more must be asked for
KV_BYTES = {"f32": 4, "bf16": 2, "f16": 2}


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What the cache will hold. Invariant: the pool holds at least one whole context."""

    context: int  # tokens of one request, prompt and answer
    kv_dtype: str
    num_blocks: int
    block_bytes: int  # of one block, over all layers
    most_kept: int = 0  # blocks that stay for their content when no request holds them

    @property
    def pool_bytes(self) -> int:
        """Memory that the cache takes when every block is used."""
        return self.num_blocks * self.block_bytes


def plan_cache(config: ModelConfig, settings: Settings, memory_bytes: int) -> CachePlan:
    """Resolve the cache's context, type and size so that it fits in ``memory_bytes``, or raise ModelTooLarge."""
    kv_dtype = settings.kv_dtype or default_kv_dtype(config)
    block_bytes = config.kv_bytes_per_token(kv_dtype) * BLOCK_SIZE
    affordable = memory_bytes // block_bytes
    context = _context(config.max_position_embeddings, settings.context, affordable * BLOCK_SIZE)
    if affordable * BLOCK_SIZE < context:
        raise _too_large(context, affordable * BLOCK_SIZE, block_bytes)
    num_blocks = min(settings.max_requests * -(-context // BLOCK_SIZE), affordable)
    most_kept = min(settings.prefix_cache_mib * 2**20 // block_bytes, num_blocks)
    return CachePlan(context, kv_dtype, num_blocks, block_bytes, most_kept)


def default_kv_dtype(config: ModelConfig) -> str:
    """float32 for float32 models; else bfloat16 for MLA's latents and float16 for keys and values."""
    if config.dtype == "float32":
        return "f32"
    return "bf16" if config.is_mla else "f16"


def memory_for_cache(weights_bytes: int) -> int:
    """Memory that the cache may take beside weights that are still to be loaded; ModelTooLarge if they do not fit."""
    memory = hardware.memory()
    if weights_bytes > memory.total_bytes:
        needed, there = weights_bytes / 2**30, memory.total_bytes / 2**30
        raise ModelTooLarge(
            f"the weights take {needed:.1f} GiB of memory; this machine has {there:.1f} GiB",
            hint="take a smaller model, or pack this one narrower (format q8 or q4)",
        )
    # Mapped weights can be read again from disk, so a tight machine still gets a small cache.
    return max(memory.available_bytes - weights_bytes, memory.available_bytes // 8) // 2


def _context(longest: int, asked: int | None, affordable: int) -> int:
    if asked is not None and asked > longest:
        raise ConfigError(
            f"context {asked} is longer than the model's {longest} tokens", hint=f"ask for at most {longest}"
        )
    return asked or min(longest, DEFAULT_CONTEXT, max(affordable, BLOCK_SIZE))


def _too_large(context: int, affordable: int, block_bytes: int) -> ModelTooLarge:
    needed = -(-context // BLOCK_SIZE) * block_bytes
    hint = f"ask for a context of at most {affordable}" if affordable else "close other programs"
    return ModelTooLarge(
        f"a context of {context} tokens needs {needed / 2**30:.2f} GiB; memory has room for {affordable} tokens",
        hint=hint,
    )
