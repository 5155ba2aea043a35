"""What a model's files say, gathered without loading it: for ``show``, ``bench`` and ``doctor``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finback.config import Settings

if TYPE_CHECKING:
    from finback.weights.bind import Binding
    from finback.weights.checkpoint import Checkpoint
    from finback.weights.config import ModelConfig
    from finback.weights.packfile import ReportLine
    from finback.weights.plan import Plan

_ROUTED = ("moe.gate", "moe.up", "moe.down")


@dataclass(frozen=True)
class Facts:
    """One model on this machine, opened but not loaded."""

    path: Path
    checkpoint: Checkpoint
    config: ModelConfig
    binding: Binding
    plan: Plan
    kv_dtype: str

    @property
    def kv_bytes_per_token(self) -> int:
        return self.config.kv_bytes_per_token(self.kv_dtype)

    @property
    def streamed_bytes_per_token(self) -> int:
        """Weight bytes that generating one token alone reads: dense weights, chosen experts and head."""
        from finback.weights.plan import streamed_bytes_per_token

        return streamed_bytes_per_token(self.plan, self.config)

    def step_bytes(self, batch: int, position: float) -> float:
        """Bytes that one decode step reads for ``batch`` sequences of ``position`` tokens each.

        Dense weights and head are read once for all. Of the routed experts, one sequence reads those it chose;
        several read the union of their choices, taken as if every expert were equally likely. Each reads its own
        cache.
        """
        weights = float(self.streamed_bytes_per_token)
        moe = self.config.moe
        if moe is not None and batch > 1:
            alone = moe.num_experts_per_tok / moe.n_routed_experts
            union = 1.0 - (1.0 - alone) ** batch
            weights += self._routed_bytes() * (union - alone)
        return weights + batch * position * self.kv_bytes_per_token

    def published_formats(self) -> dict[str, int]:
        """Bytes in the files by format, the largest first."""
        sizes: Counter[str] = Counter()
        for tensor in self.checkpoint.tensors.values():
            sizes[tensor.format] += tensor.nbytes
        return dict(sizes.most_common())

    def _routed_bytes(self) -> int:
        routed = (field for field in self.plan.fields if field.source.field.split(".", 2)[-1] in _ROUTED)
        return sum(field.nbytes for field in routed)

    def report(self, cache_dir: Path) -> tuple[ReportLine, ...]:
        """What packing did to each field, or would do."""
        from finback.weights.pack import describe

        return describe(self.checkpoint, self.config, format=self.plan.format, cache_dir=cache_dir)

    def pack_path(self, cache_dir: Path) -> Path:
        from finback.weights.pack import pack_path

        return pack_path(self.checkpoint, self.config, format=self.plan.format, cache_dir=cache_dir)


def facts_of(path: Path, settings: Settings) -> Facts:
    """Open and check a model's files; the weights are not read."""
    from finback.engine.memory import default_kv_dtype
    from finback.weights.bind import bind
    from finback.weights.checkpoint import open_checkpoint
    from finback.weights.config import ModelConfig
    from finback.weights.plan import make_plan

    checkpoint = open_checkpoint(path)
    config = ModelConfig.from_checkpoint(checkpoint)
    binding = bind(checkpoint, config)
    plan = make_plan(binding, settings.format)
    return Facts(path, checkpoint, config, binding, plan, settings.kv_dtype or default_kv_dtype(config))


def geometry(config: ModelConfig) -> dict[str, Any]:
    """The model's shape under the names that model files use."""
    shape: dict[str, Any] = {
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
    }
    if config.is_mla:
        shape |= {"q_lora_rank": config.q_lora_rank, "kv_lora_rank": config.kv_lora_rank}
    if config.moe:
        shape |= {
            "n_routed_experts": config.moe.n_routed_experts,
            "num_experts_per_tok": config.moe.num_experts_per_tok,
            "n_shared_experts": config.moe.n_shared_experts,
        }
    return shape
