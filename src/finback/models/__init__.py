"""Architectures: one file per family, which reads like its paper, calls coarse kernels and opens no file."""

from __future__ import annotations

from collections.abc import Mapping

from finback.errors import UnsupportedModel
from finback.kernels import Matrix
from finback.models import deepseek, llama
from finback.models.batch import Batch, Segment
from finback.models.layers import Array, Fields, LayerCache, Model
from finback.weights.config import ModelConfig

__all__ = ["Batch", "LayerCache", "Model", "Segment", "build"]

FAMILIES = {
    "llama": llama.build,
    "qwen2": llama.build,
    "qwen3": llama.build,
    "deepseek_v2": deepseek.build,
    "deepseek_v3": deepseek.build,
}


def build(config: ModelConfig, weights: Mapping[str, Matrix | Array]) -> Model:
    """The model that ``config`` describes over bound ``weights``; a typed error where they do not fit."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        hint = f"architectures that run: {', '.join(FAMILIES)}"
        raise UnsupportedModel(f"Finback does not run the architecture {config.model_type!r}", hint=hint)
    return family(config, Fields(weights))
