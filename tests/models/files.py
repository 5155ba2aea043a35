"""Tiny models as files, and loaded: through the same readers, binding and packing that published ones pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from finback.models import Model, build
from finback.weights.checkpoint import open_checkpoint
from finback.weights.config import ModelConfig
from finback.weights.pack import load_weights
from tests.vectors.models.tiny import Tiny, tiny_tensors
from tests.weights.writers import Raw, write_safetensors_folder

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def write_folder(folder: Path, tiny: Tiny) -> Path:
    """The tiny model as a Hugging Face folder."""
    config: dict[str, Any] = dict(tiny.config)
    if tiny.fp8_scales is None:
        return write_safetensors_folder(folder, config, tiny_tensors(tiny))
    config["quantization_config"] = FP8
    stored = {name: _as_stored(name, value) for name, value in tiny_tensors(tiny).items()}
    return write_safetensors_folder(folder, config, stored)


def _as_stored(name: str, value: np.ndarray[Any, Any]) -> Any:
    if value.dtype != np.uint8:
        return value
    kind = "F8_E8M0" if name.endswith("_scale_inv") else "F8_E4M3"
    return Raw(kind, value.shape, value.tobytes())


def load(path: Path, cache: Path, **options: Any) -> Model:
    """The model in the files at ``path``."""
    checkpoint = open_checkpoint(path)
    config = ModelConfig.from_checkpoint(checkpoint)
    return build(config, load_weights(checkpoint, config, cache_dir=cache, **options))
