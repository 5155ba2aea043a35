"""Against transformers and safetensors: saved configurations, parameter counts, FP8 values, the container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finback.weights.checkpoint import open_checkpoint
from finback.weights.config import ModelConfig
from tests.weights.test_pack import load, published
from tests.weights.tiny import FAMILIES, tiny_config, write_tiny_folder

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

ROPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default", "rope_theta": 50000.0},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e6},
}


def _model(family: str, **overrides: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    values = tiny_config(family, **overrides)
    config = transformers.AutoConfig.for_model(**values)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope", ROPES)
def test_configurations_that_transformers_saves(tmp_path: Path, family: str, rope: str) -> None:
    model = _model(family, rope_scaling=None, rope_parameters=ROPES[rope])
    model.save_pretrained(tmp_path)
    config = ModelConfig.from_checkpoint(open_checkpoint(tmp_path))
    assert config.parameters.total == model.num_parameters() + _buffers(model)
    assert config.rope.theta == ROPES[rope]["rope_theta"]
    assert config.rope.attention_factor == pytest.approx(model.model.rotary_emb.attention_scaling)
    if config.is_mla:
        assert config.attention_scale == pytest.approx(model.model.layers[0].self_attn.scaling)


def _buffers(model: Any) -> int:
    """The router's correction, which transformers keeps as a buffer."""
    return sum(buffer.numel() for name, buffer in model.named_buffers() if "e_score_correction" in name)


@pytest.mark.parametrize("family", FAMILIES)
def test_files_that_transformers_saves_bind_and_pack(tmp_path: Path, family: str) -> None:
    model = _model(family)
    model.save_pretrained(tmp_path / "m")
    weights = load(tmp_path / "m", tmp_path / "cache")
    assert weights.unused == ()
    assert all(line.error is None for line in weights.report)


def test_block_fp8_values(tmp_path: Path) -> None:
    """Our FP8 values are those of transformers' dequantising load."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")  # transformers loads FP8 with it
    folder = write_tiny_folder(tmp_path / "m", "deepseek_v3", dtype="F8", hidden_size=256, intermediate_size=384)
    quantization = transformers.FineGrainedFP8Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantization, dtype=torch.float32
    )
    ours, theirs = published(folder), {name: p.detach().float().numpy() for name, p in model.named_parameters()}
    np.testing.assert_array_equal(ours["layers.1.attn.o"][0], theirs["model.layers.1.self_attn.o_proj.weight"])
    np.testing.assert_array_equal(ours["layers.0.mlp.gate"][0], theirs["model.layers.0.mlp.gate_proj.weight"])
    np.testing.assert_array_equal(ours["layers.2.moe.down"], theirs["model.layers.2.mlp.experts.down_proj"])


def test_the_pack_is_a_safetensors_file(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    weights = load(write_tiny_folder(tmp_path / "m", "deepseek_v3"), tmp_path / "cache")
    with safetensors.safe_open(next((tmp_path / "cache").iterdir()), "np") as pack:
        assert set(pack.keys()) == set(weights)
        norm = pack.get_tensor("norm").view(np.float32)[: len(weights["norm"])]
    np.testing.assert_array_equal(norm, weights["norm"])
