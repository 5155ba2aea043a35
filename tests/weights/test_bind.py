"""Binding: every field of every family is found in both containers, and what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finback.errors import MissingTensor, ShapeMismatch, UnsupportedModel
from finback.weights.bind import Binding, Source, bind, field_shapes
from finback.weights.checkpoint import Checkpoint, open_checkpoint
from finback.weights.config import ModelConfig
from finback.weights.formats import dequantize
from tests.weights.tiny import (
    FAMILIES,
    block_fp8,
    gguf_metadata,
    gguf_tensors,
    tiny_config,
    tiny_tensors,
    write_tiny_folder,
    write_tiny_gguf,
)
from tests.weights.writers import Raw, write_gguf, write_safetensors_folder

Floats = np.ndarray[Any, np.dtype[np.float32]]


def opened(path: Path) -> tuple[Checkpoint, ModelConfig, Binding]:
    checkpoint = open_checkpoint(path)
    config = ModelConfig.from_checkpoint(checkpoint)
    return checkpoint, config, bind(checkpoint, config)


def values(checkpoint: Checkpoint, source: Source) -> Floats:
    """The field as the source describes it, spelled out: read, dequantise, reorder, stack."""
    parts = []
    for piece in source.pieces:
        info = checkpoint.tensors[piece.tensor]
        data = checkpoint.read(piece.tensor, slice(piece.start, piece.stop))
        part = dequantize(info.format, data, (piece.stop - piece.start, info.shape[-1]))
        parts.append(part.T if source.transpose else part)
    stacked = np.stack(parts)
    if source.unpermute_heads:
        rows = stacked.reshape(-1) if source.is_vector else stacked[0]
        pairs = rows.reshape(source.unpermute_heads, -1, 2, *rows.shape[1:])
        stacked = np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1)
    return stacked.reshape(source.shape)


def expected_fields(config: ModelConfig, tensors: dict[str, Floats]) -> dict[str, Floats]:
    """The fields straight from the Hugging Face tensors, written without looking at bind.py's tables."""
    found: dict[str, Floats] = {}
    for layer in range(config.num_hidden_layers):
        prefix, field = f"model.layers.{layer}.", f"layers.{layer}."
        mine = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        found |= {field + name: value for name, value in _layer_fields(config, mine).items()}
    found["embed"] = tensors["model.embed_tokens.weight"]
    found["norm"] = tensors["model.norm.weight"]
    if "lm_head.weight" in tensors:
        found["head"] = tensors["lm_head.weight"]
    return found


def _layer_fields(config: ModelConfig, mine: dict[str, Floats]) -> dict[str, Floats]:
    fields = {"attn_norm": mine["input_layernorm.weight"], "mlp_norm": mine["post_attention_layernorm.weight"]}
    attention = {
        "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "q_norm": "q_norm", "k_norm": "k_norm",
        "q_a_proj": "q_a", "q_a_layernorm": "q_a_norm", "q_b_proj": "q_b", "kv_a_proj_with_mqa": "kv_a",
        "kv_a_layernorm": "kv_a_norm",
    }  # fmt: skip
    for published, name in attention.items():
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            if f"self_attn.{published}.{kind}" in mine:
                fields[f"attn.{name}{suffix}"] = mine[f"self_attn.{published}.{kind}"]
    if config.is_mla:
        by_head = mine["self_attn.kv_b_proj.weight"].reshape(config.num_attention_heads, -1, config.kv_lora_rank)
        keys = by_head[:, : config.qk_nope_head_dim]
        fields |= {"attn.k_up": keys, "attn.k_absorb": keys.transpose(0, 2, 1)}
        fields["attn.v_up"] = by_head[:, config.qk_nope_head_dim :]
    for part in ("gate", "up", "down"):
        if f"mlp.{part}_proj.weight" in mine:
            fields[f"mlp.{part}"] = mine[f"mlp.{part}_proj.weight"]
            continue
        assert config.moe is not None
        experts = range(config.moe.n_routed_experts)
        fields[f"moe.{part}"] = np.stack([mine[f"mlp.experts.{e}.{part}_proj.weight"] for e in experts])
        fields[f"moe.shared_{part}"] = mine[f"mlp.shared_experts.{part}_proj.weight"]
        fields["moe.router"] = mine["mlp.gate.weight"]
        if config.moe.has_bias:
            fields["moe.router_bias"] = mine["mlp.gate.e_score_correction_bias"]
    return fields


def check(path: Path, family: str, **overrides: Any) -> Binding:
    """The F32 file at ``path`` binds to exactly the fields of the family's tiny tensors."""
    checkpoint, config, binding = opened(path)
    expected = expected_fields(config, tiny_tensors(tiny_config(family, **overrides)))
    assert set(binding.sources) - {"rope_freqs"} == set(expected)
    for field, source in binding.sources.items():
        if field == "rope_freqs":
            continue
        shape = expected[field].shape
        assert source.shape == (shape if len(shape) != 2 else (1, *shape)), field
        np.testing.assert_array_equal(values(checkpoint, source).reshape(shape), expected[field], err_msg=field)
    return binding


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [1, 3])
def test_hugging_face_names(tmp_path: Path, family: str, shards: int) -> None:
    binding = check(write_tiny_folder(tmp_path, family, shards=shards), family)
    assert binding.unused == binding.skipped == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_names(tmp_path: Path, family: str) -> None:
    binding = check(write_tiny_gguf(tmp_path / "m.gguf", family), family)
    assert binding.unused == binding.skipped == ()
    assert ("rope_freqs" in binding.sources) == (family == "llama")


@pytest.mark.parametrize("family", ["deepseek_v2_lite", "deepseek_v3"])
def test_gguf_with_the_latent_projection_in_one_piece(tmp_path: Path, family: str) -> None:
    binding = check(write_tiny_gguf(tmp_path / "m.gguf", family, old_mla=True), family)
    k_up, k_absorb = (binding.sources[f"layers.0.attn.{name}"] for name in ("k_up", "k_absorb"))
    assert (k_up.transpose, k_absorb.transpose) == (False, True)


def test_gguf_halves_are_published_the_other_way_round(tmp_path: Path) -> None:
    _, _, binding = opened(write_tiny_gguf(tmp_path / "m.gguf", "deepseek_v3", format="Q8_0"))
    k_up, k_absorb = (binding.sources[f"layers.0.attn.{name}"] for name in ("k_up", "k_absorb"))
    assert (k_up.transpose, k_absorb.transpose) == (True, False)
    assert k_up.tile_format in ("f32", "f16")
    assert k_up.note.startswith("transposed copy")


def test_quantised_halves_keep_the_published_one(tmp_path: Path) -> None:
    """Rows of 32 latents fit Q8_0's blocks: the published orientation stays, the other is widened and says so."""
    path = write_tiny_gguf(tmp_path / "m.gguf", "deepseek_v2", format="Q8_0", old_mla=True)
    _, _, binding = opened(path)
    k_up, k_absorb = (binding.sources[f"layers.1.attn.{name}"] for name in ("k_up", "k_absorb"))
    assert (k_up.tile_format, k_up.note) == ("q8_0", "")
    assert (k_absorb.tile_format, k_absorb.note) == ("f32", "transposed copy, widened to f32")


def test_half_precision_copies_stay_halves(tmp_path: Path) -> None:
    _, _, binding = opened(write_tiny_folder(tmp_path, "deepseek_v3", dtype="BF16"))
    k_absorb = binding.sources["layers.1.attn.k_absorb"]
    assert (k_absorb.format, k_absorb.tile_format, k_absorb.note) == ("bf16", "bf16", "transposed copy")
    router = binding.sources["layers.1.moe.router"]
    assert (router.tile_format, router.note) == ("f32", "widened to float32")
    assert binding.sources["embed"].tile_format == "bf16"


def fused(tensors: dict[str, Floats], layer: int, names: tuple[str, str, str]) -> dict[str, Floats]:
    """Gates stacked on ups in one tensor."""
    gate, up, both = names
    found = {name: value for name, value in tensors.items() if name not in (gate, up)}
    return {**found, both: np.concatenate([tensors[gate], tensors[up]], axis=1)}


def test_gguf_fused_gate_and_up(tmp_path: Path) -> None:
    config = tiny_config("deepseek_v3")
    tensors = gguf_tensors(config, tiny_tensors(config))
    for layer in (1, 2):
        names = tuple(f"blk.{layer}.ffn_{part}_exps.weight" for part in ("gate", "up", "gate_up"))
        tensors = fused(tensors, layer, names)  # type: ignore[arg-type]
    check(write_gguf(tmp_path / "m.gguf", gguf_metadata(config), tensors), "deepseek_v3")


def test_hugging_face_experts_in_stacks(tmp_path: Path) -> None:
    config = tiny_config("deepseek_v3")
    tensors = tiny_tensors(config)
    for layer in (1, 2):
        prefix = f"model.layers.{layer}.mlp.experts."
        parts = {
            part: np.stack([tensors.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(8)])
            for part in ("gate", "up", "down")
        }
        tensors[f"{prefix}gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
        tensors[f"{prefix}down_proj"] = parts["down"]
    check(write_safetensors_folder(tmp_path, config, tensors), "deepseek_v3")


def test_prediction_layers_are_skipped(tmp_path: Path) -> None:
    config = tiny_config("deepseek_v3", num_nextn_predict_layers=1)
    extra = {"model.layers.3.eh_proj.weight": np.ones((64, 128), np.float32)}
    tensors = {**tiny_tensors(config), **extra, "model.unheard_of": np.ones(3, np.float32)}
    binding = opened(write_safetensors_folder(tmp_path, config, tensors))[2]
    assert binding.skipped == ("model.layers.3.eh_proj.weight",)
    assert binding.unused == ("model.unheard_of",)


def test_gguf_prediction_layers_inside_the_count(tmp_path: Path) -> None:
    config = tiny_config("deepseek_v3")
    metadata = {**gguf_metadata(config), "deepseek2.block_count": 4, "deepseek2.nextn_predict_layers": 1}
    tensors = gguf_tensors(config, tiny_tensors(config))
    tensors["blk.3.nextn.eh_proj.weight"] = np.ones((64, 128), np.float32)
    binding = check(write_gguf(tmp_path / "m.gguf", metadata, tensors), "deepseek_v3")
    assert binding.skipped == ("blk.3.nextn.eh_proj.weight",)


def test_biases_everywhere(tmp_path: Path) -> None:
    config = tiny_config("llama", attention_bias=True)
    tensors = tiny_tensors(config)
    rng = np.random.default_rng(1)
    for layer in range(3):
        for part, width in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            name = f"model.layers.{layer}.self_attn.{part}_proj.bias"
            tensors[name] = rng.normal(size=width).astype(np.float32)
    hf = opened(write_safetensors_folder(tmp_path / "hf", config, tensors))
    gguf = opened(write_gguf(tmp_path / "m.gguf", gguf_metadata(config), gguf_tensors(config, tensors)))
    for part in "qkvo":
        field = f"layers.1.attn.{part}_bias"
        expected = tensors[f"model.layers.1.self_attn.{part}_proj.bias"]
        np.testing.assert_array_equal(values(hf[0], hf[2].sources[field]), expected)
        np.testing.assert_array_equal(values(gguf[0], gguf[2].sources[field]), expected, err_msg=f"{field} of GGUF")


def test_latent_attention_with_biases(tmp_path: Path) -> None:
    config = tiny_config("deepseek_v3", attention_bias=True)
    tensors = tiny_tensors(config)
    for layer in range(3):
        prefix = f"model.layers.{layer}.self_attn."
        for name, width in (("q_a_proj", 24), ("kv_a_proj_with_mqa", 40), ("o_proj", 64)):
            tensors[f"{prefix}{name}.bias"] = np.full(width, 0.5, np.float32)
    _, model, binding = opened(write_safetensors_folder(tmp_path, config, tensors))
    assert binding.unused == ()
    assert model.parameters.total == sum(tensor.size for tensor in tensors.values())
    assert binding.sources["layers.0.attn.kv_a_bias"].shape == (40,)


# ---- what does not fit


def _folder(tmp_path: Path, family: str, **changes: Floats | Raw | None) -> Path:
    """A folder in which some tensors are replaced, or dropped (None); ``__`` in a name stands for a dot."""
    config = tiny_config(family)
    tensors: dict[str, Any] = dict(tiny_tensors(config))
    for name, value in changes.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    return write_safetensors_folder(tmp_path, config, tensors)


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.2.self_attn.kv_b_proj.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.2.mlp.experts.7.down_proj.weight",
    ],
)
def test_missing_tensors_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingTensor, match=name.replace(".", r"\.")):
        opened(_folder(tmp_path, "deepseek_v3", **{name: None}))


@pytest.mark.parametrize(
    ("family", "dropped"), [("deepseek_v3", "exp_probs_b"), ("qwen2", "attn_q.bias"), ("qwen3", "attn_k_norm")]
)
def test_tensors_that_gguf_could_do_without_are_not_guessed_away(tmp_path: Path, family: str, dropped: str) -> None:
    config = tiny_config(family)
    tensors = gguf_tensors(config, tiny_tensors(config))
    kept = {name: value for name, value in tensors.items() if dropped not in name}
    with pytest.raises(MissingTensor, match=dropped):
        opened(write_gguf(tmp_path / "m.gguf", gguf_metadata(config), kept))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (64, 272)),
        ("model.norm.weight", (1, 64)),
        ("model.layers.1.mlp.experts.3.up_proj.weight", (32, 65)),
        ("model.layers.0.self_attn.kv_b_proj.weight", (4 * 32 + 1, 32)),
        ("model.layers.0.self_attn.q_a_proj.weight", (64, 24)),
    ],
)
def test_wrong_shapes_are_named(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match=name.replace(".", r"\.")) as caught:
        opened(_folder(tmp_path, "deepseek_v3", **{name: np.zeros(shape, np.float32)}))
    assert str(list(shape)) in str(caught.value)


def test_experts_of_one_layer_share_a_format(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    with pytest.raises(ShapeMismatch, match=r"experts\.3\.up_proj"):
        opened(_folder(tmp_path, "deepseek_v3", **{name: np.zeros((32, 64), np.float16)}))


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8])
def test_formats_that_no_kernel_multiplies(tmp_path: Path, dtype: Any) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    with pytest.raises(UnsupportedModel, match=r"o_proj"):
        opened(_folder(tmp_path, "llama", **{name: np.zeros((64, 64), dtype)}))


# ---- FP8


def fp8_folder(folder: Path, *, block: tuple[int, int], scales: Any, codes: Any = None) -> Path:
    """A llama whose first o_proj is FP8, [64, 64], with the given scales and codes (zeros)."""
    name = "model.layers.0.self_attn.o_proj.weight"
    config = tiny_config("llama")
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(block)}
    data = bytes(64 * 64) if codes is None else codes.tobytes()
    tensors = {**tiny_tensors(config), name: Raw("F8_E4M3", (64, 64), data)}
    if scales is not None:
        tensors[name.replace(".weight", ".weight_scale_inv")] = scales
    return write_safetensors_folder(folder, config, tensors)


@pytest.mark.parametrize(
    ("block", "grid", "resolved", "tile"),
    [
        ((128, 128), (1, 1), (128, 128), "f8_e4m3"),
        ((16, 64), (4, 1), (16, 64), "f8_e4m3"),
        ((16, 16), (4, 4), (16, 16), "f32"),
        ((48, 48), (2, 2), (48, 48), "f32"),  # partial edge blocks
        ((128, 128), (2, 2), (32, 32), "f32"),  # the grid cuts evenly, whatever the configuration says
        ((128, 128), (), (64, 64), "f8_e4m3"),
        ((128, 128), (1,), (64, 64), "f8_e4m3"),
    ],
)
def test_fp8_blocks(
    tmp_path: Path, block: tuple[int, int], grid: tuple[int, ...], resolved: tuple[int, int], tile: str
) -> None:
    folder = fp8_folder(tmp_path, block=block, scales=np.ones(grid, np.float32))
    source = opened(folder)[2].sources["layers.0.attn.o"]
    assert (source.format, source.fp8_block, source.tile_format) == ("f8_e4m3", resolved, tile)
    assert ("widened" in source.note) == (tile == "f32")


@pytest.mark.parametrize("scales", [np.ones((3, 3), np.float32), np.ones((1, 1, 1), np.float32)])
def test_fp8_scales_of_another_shape(tmp_path: Path, scales: Floats) -> None:
    with pytest.raises(ShapeMismatch, match="weight_scale_inv"):
        opened(fp8_folder(tmp_path, block=(128, 128), scales=scales))


def test_fp8_without_scales(tmp_path: Path) -> None:
    with pytest.raises(MissingTensor, match="weight_scale_inv"):
        opened(fp8_folder(tmp_path, block=(128, 128), scales=None))


@pytest.mark.parametrize("format", ["F8_E8M0", "U8"])
def test_fp8_scales_as_powers_of_two(tmp_path: Path, format: str) -> None:
    folder = fp8_folder(tmp_path, block=(128, 128), scales=Raw(format, (1, 1), b"\x7f"))
    assert opened(folder)[2].sources["layers.0.attn.o"].fp8_block == (128, 128)


def test_block_fp8_fixture_binds(tmp_path: Path) -> None:
    _, config, binding = opened(write_tiny_folder(tmp_path, "deepseek_v3", dtype="F8"))
    assert binding.unused == ()
    assert binding.sources["layers.1.moe.gate"].tile_format == "f8_e4m3"
    assert binding.sources["layers.1.attn.k_absorb"].note == "transposed copy, widened to f32"
    assert set(binding.sources) == set(field_shapes(config))
    assert block_fp8(np.ones((4, 4), np.float32))[1].shape == (1, 1)


def test_configuration_and_files_of_different_models(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path, "llama")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 4}))
    with pytest.raises(MissingTensor, match=r"model\.layers\.3\."):
        opened(folder)
