"""ModelConfig: what config.json and GGUF metadata say, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finback.errors import FinbackError, MalformedFile, ShapeMismatch, UnsupportedModel
from finback.weights.checkpoint import open_checkpoint
from finback.weights.config import ModelConfig, RopeConfig
from tests.weights.tiny import FAMILIES, gguf_metadata, tiny_config, tiny_tensors, write_tiny_folder, write_tiny_gguf
from tests.weights.writers import write_gguf

# Public geometry of released models: config.json as published, and the sizes their makers state.
V3 = {
    "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "n_shared_experts": 1, "n_routed_experts": 256, "routed_scaling_factor": 2.5, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "topk_method": "noaux_tc",
    "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "moe_layer_freq": 1, "first_k_dense_replace": 3,
    "norm_topk_prob": True, "scoring_func": "sigmoid", "hidden_act": "silu", "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "num_nextn_predict_layers": 1, "bos_token_id": 0, "eos_token_id": 1,
    "rope_scaling": {
        "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    },
    "torch_dtype": "bfloat16",
}  # fmt: skip
V2_LITE = {
    **V3, "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "n_shared_experts": 2,
    "n_routed_experts": 64, "routed_scaling_factor": 1.0, "q_lora_rank": None, "topk_method": "greedy", "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "norm_topk_prob": False,
    "scoring_func": "softmax", "rope_scaling": {**V3["rope_scaling"], "mscale": 0.707, "mscale_all_dim": 0.707},
    "quantization_config": None,
}  # fmt: skip


class Given:
    """A checkpoint that has nothing but a configuration."""

    def __init__(self, hf_config: dict[str, Any]) -> None:
        self.kind = "safetensors"
        self.hf_config = hf_config
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, Any] = {}


def read(values: dict[str, Any]) -> ModelConfig:
    return ModelConfig.from_checkpoint(Given(values))  # type: ignore[arg-type]


def test_published_sizes() -> None:
    v3, lite = read(V3), read(V2_LITE)
    assert v3.parameters.total == 671_026_419_200
    assert v3.parameters.active == 37_552_297_472
    assert lite.parameters.total == pytest.approx(15.706e9, rel=1e-4)
    assert lite.parameters.active == pytest.approx(2.7e9, rel=0.02)
    assert v3.kv_bytes_per_token("bf16") == 70_272
    assert lite.kv_bytes_per_token("bf16") == 31_104
    assert v3.attention_scale == pytest.approx(0.13523378)
    assert lite.attention_scale == pytest.approx(0.11472139)


def test_dense_sizes() -> None:
    llama = {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
    }  # fmt: skip
    config = read(llama)
    assert config.parameters.total == config.parameters.active == pytest.approx(8.030e9, rel=1e-4)
    assert config.kv_bytes_per_token("f16") == 131_072
    qwen = {**llama, "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}  # fmt: skip
    assert read(qwen).parameters.total == pytest.approx(7.616e9, rel=1e-4)


def test_deepseek_v3_in_full() -> None:
    config = read(V3)
    assert config.is_mla
    assert config.family == "deepseek"
    assert config.rope_interleaved
    assert config.fp8_block == (128, 128)
    assert config.num_nextn_predict_layers == 1
    assert (config.bos_token_id, config.eos_token_ids) == (0, (1,))
    assert config.rope == RopeConfig(
        theta=10000.0, type="yarn", factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0
    )
    assert config.moe is not None
    assert (config.moe.group_rule, config.moe.n_group, config.moe.topk_group) == ("top2", 8, 4)
    assert (config.moe.scoring_func, config.moe.norm_topk_prob, config.moe.has_bias) == ("sigmoid", True, True)
    assert [config.is_moe_layer(layer) for layer in (2, 3)] == [False, True]


def test_v2_group_limited_greedy() -> None:
    config = read({**V2_LITE, "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3})
    assert config.moe is not None
    assert (config.moe.group_rule, config.moe.scoring_func, config.moe.has_bias) == ("max", "softmax", False)
    greedy = read({**V2_LITE, "n_group": 8, "topk_group": 3}).moe
    assert greedy is not None
    assert (greedy.group_rule, greedy.n_group) == ("none", 1)


def test_transformers_5_spelling() -> None:
    old = tiny_config("llama")
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")}
    new["rope_parameters"] = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    new["dtype"] = old["torch_dtype"]
    assert read(new) == read(old)


def test_yarn_factor_of_attention() -> None:
    """1 + ln(factor) / 10 on cos and sin, unless the file states it or MLA's pair of mscales replaces it."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    base = {**tiny_config("qwen3"), "rope_scaling": yarn}
    assert read(base).rope.attention_factor == pytest.approx(1 + 0.1 * math.log(4))
    assert read({**base, "rope_scaling": {**yarn, "attention_factor": 1.5}}).rope.attention_factor == 1.5
    assert read(V3).rope.attention_factor == 1.0


@pytest.mark.parametrize(("family", "old_mla"), [(f, False) for f in FAMILIES] + [(f, True) for f in FAMILIES[3:]])
def test_gguf_says_the_same_as_config_json(tmp_path: Path, family: str, old_mla: bool) -> None:
    folder = write_tiny_folder(tmp_path / "hf", family)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", family, old_mla=old_mla)
    hf = ModelConfig.from_checkpoint(open_checkpoint(folder))
    gguf = ModelConfig.from_checkpoint(open_checkpoint(path))
    # float32 metadata; and llama3 scaling travels as the tensor rope_freqs instead.
    rope = RopeConfig(theta=10000.0) if family == "llama" else hf.rope
    assert replace(gguf, rms_norm_eps=1e-6) == replace(hf, rope=rope)
    assert gguf.rms_norm_eps == pytest.approx(1e-6)


def _gguf_with(tmp_path: Path, family: str, **changes: Any) -> ModelConfig:
    """The configuration of a tiny GGUF whose metadata have some keys changed, or dropped (None)."""
    original = open_checkpoint(write_tiny_gguf(tmp_path / "a.gguf", family))
    arch = original.metadata["general.architecture"]
    metadata = {key: value for key, value in original.metadata.items() if not key.startswith("tokenizer.")}
    for key, value in changes.items():
        full = key.replace("__", ".") if "general" in key else f"{arch}.{key.replace('__', '.')}"
        metadata.pop(full, None)
        if value is not None:
            metadata[full] = value
    tensors = {name: np.zeros(info.shape, np.float32) for name, info in original.tensors.items()}
    return ModelConfig.from_checkpoint(open_checkpoint(write_gguf(tmp_path / "b.gguf", metadata, tensors)))


def test_gguf_of_older_converters(tmp_path: Path) -> None:
    config = _gguf_with(
        tmp_path, "deepseek_v3", expert_gating_func=None, expert_group_count=None, expert_group_used_count=None,
        expert_weights_norm=None,
    )  # fmt: skip
    assert config.model_type == "deepseek_v3"
    assert config.moe is not None
    assert (config.moe.scoring_func, config.moe.group_rule, config.moe.norm_topk_prob) == ("sigmoid", "none", True)
    assert "expert groups" in config.notes[0]
    older = _gguf_with(tmp_path, "deepseek_v2", expert_gating_func=None, expert_weights_scale=None)
    assert older.model_type == "deepseek_v2"
    assert older.moe is not None
    assert (older.moe.scoring_func, older.moe.group_rule) == ("softmax", "max")
    assert older.moe.routed_scaling_factor == 1.0


def test_gguf_sizes_per_layer_must_agree(tmp_path: Path) -> None:
    assert _gguf_with(tmp_path, "llama", feed_forward_length=[128, 128, 128]).intermediate_size == 128
    with pytest.raises(UnsupportedModel, match="feed_forward_length"):
        _gguf_with(tmp_path, "llama", feed_forward_length=[128, 64, 128])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "deepseek4"}, "deepseek4"),
        ({"expert_count": 8}, "expert_count"),
        ({"rope__scaling__type": "longrope"}, "longrope"),
        ({"rope__dimension_count": 8}, "rope.dimension_count"),
    ],
)
def test_gguf_options_that_do_not_run(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message) as caught:
        _gguf_with(tmp_path, "llama", **changes)
    assert "deepseek2" in str(caught.value.hint)


def test_gguf_embedding_shape(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "x.gguf", {"general.architecture": "llama"}, {"token_embd.weight": np.zeros(8, np.float32)}
    )
    with pytest.raises(ShapeMismatch, match=r"token_embd\.weight"):
        ModelConfig.from_checkpoint(open_checkpoint(path))


def test_tied_embeddings_follow_the_files(tmp_path: Path) -> None:
    """A file that has its own head is not tied, whatever its configuration says."""
    folder = write_tiny_folder(tmp_path, "llama", tie_word_embeddings=True)
    assert ModelConfig.from_checkpoint(open_checkpoint(folder)).tie_word_embeddings
    values = json.loads((write_tiny_folder(tmp_path / "own", "llama") / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": True}))
    assert not ModelConfig.from_checkpoint(open_checkpoint(tmp_path / "own")).tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "deepseek_v32"}, "deepseek_v32"),
        ({"model_type": "deepseek_v4"}, "deepseek_v4"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"topk_method": "greedy"}, "topk_method"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"rope_scaling": {"type": "longrope", "factor": 4}}, "longrope"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4}}, "dynamic"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "rope_scaling"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method"),
        ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}, "activation_scheme"),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2"}}, "fmt"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
    ],
)
def test_options_that_do_not_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read({**V3, **changes})


def test_the_files_say_which_layers_have_experts(tmp_path: Path) -> None:
    """moe_layer_freq is ignored by transformers, and honoured by the published code."""
    every_second = {**V3, "first_k_dense_replace": 1, "num_hidden_layers": 6, "moe_layer_freq": 2}
    honoured = read(every_second)
    assert [honoured.is_moe_layer(layer) for layer in range(6)] == [False, False, True, False, True, False]
    folder = write_tiny_folder(tmp_path, "deepseek_v3", moe_layer_freq=2)  # has experts in layers 1 and 2
    ignored = ModelConfig.from_checkpoint(open_checkpoint(folder))
    assert [ignored.is_moe_layer(layer) for layer in range(3)] == [False, True, True]


def test_sliding_windows_do_not_run() -> None:
    qwen = tiny_config("qwen2")
    assert read({**qwen, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 1})
    with pytest.raises(UnsupportedModel, match="use_sliding_window"):
        read({**qwen, "use_sliding_window": True})
    with pytest.raises(UnsupportedModel, match="layer_types"):
        read({**qwen, "layer_types": ["full_attention", "sliding_attention"]})


INTEGERS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank", "q_lora_rank",
            "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "max_position_embeddings",
            "n_group", "topk_group", "first_k_dense_replace", "num_nextn_predict_layers")  # fmt: skip
NUMBERS = ("rms_norm_eps", "rope_theta", "routed_scaling_factor")


@pytest.mark.parametrize("key", INTEGERS)
@pytest.mark.parametrize("value", [-1, 1.5, "64", True, [64], {}, 1 << 62, 10**400, math.nan, math.inf])
def test_attacks_on_sizes(key: str, value: object) -> None:
    with pytest.raises(MalformedFile, match=key):
        read({**V3, key: value})


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", ["1", True, [], math.nan, math.inf, -math.inf, 1e300, 10**400])
def test_attacks_on_numbers(key: str, value: object) -> None:
    with pytest.raises(MalformedFile, match=key):
        read({**V3, key: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token_id": "1"},
        {"eos_token_id": [1, -1]},
        {"eos_token_id": list(range(2000))},
        {"norm_topk_prob": "yes"},
        {"rope_scaling": "yarn"},
        {"rope_scaling": {"type": 7}},
        {"rope_scaling": {"type": "yarn", "factor": 0}},
        {"rope_scaling": {"type": "yarn", "factor": math.nan}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}},
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": 128}},
        {"quantization_config": []},
        {"qk_rope_head_dim": 63},
        {"n_group": 7},
        {"topk_group": 9},
        {"num_experts_per_tok": 200},
        {"n_group": 256, "topk_group": 256},
        {"torch_dtype": 5},
    ],
)
def test_contradictions(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedFile):
        read({**V3, **changes})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "kv_lora_rank", "num_experts_per_tok"])
def test_missing_keys_are_named(key: str) -> None:
    with pytest.raises(MalformedFile, match=f"no {key}"):
        read({name: value for name, value in V3.items() if name != key})


def test_heads_must_share_evenly() -> None:
    with pytest.raises(MalformedFile, match="key-value heads"):
        read({**tiny_config("llama"), "num_key_value_heads": 3})


def test_messages_stay_short() -> None:
    with pytest.raises(FinbackError) as caught:
        read({**V3, "model_type": "x" * 10_000})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_count_is_that_of_the_tensors(family: str) -> None:
    values = tiny_config(family)
    expected = sum(tensor.size for tensor in tiny_tensors(values).values())
    assert read(values).parameters.total == expected


def check_read_or_refused(checkpoint: Given) -> None:
    try:
        config = ModelConfig.from_checkpoint(checkpoint)  # type: ignore[arg-type]
    except FinbackError as error:
        message = str(error)
    else:
        message = f"{config.parameters.total} parameters"
    assert 0 < len(message) < 400


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["yarn", "fp8", 1, 0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(V3["rope_scaling"])), inner),
    max_leaves=5,
)


@given(st.sampled_from([V3, V2_LITE, tiny_config("llama"), tiny_config("qwen2"), tiny_config("qwen3")]), st.data())
@settings(max_examples=100, deadline=None)
def test_any_value_anywhere_is_read_or_refused(base: dict[str, Any], data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.sampled_from([*base, "rope_parameters", "layer_types"]), min_size=1, max_size=3))
    values = {**base, **{key: data.draw(JUNK) for key in keys}}
    check_read_or_refused(Given(values))


GGUF_JUNK = (
    st.booleans() | st.integers(0, 1 << 64) | st.floats() | st.text(max_size=8)
    | st.lists(st.integers(0, 300), max_size=4).map(lambda items: np.array(items, np.int64))
    | st.lists(st.text(max_size=3), max_size=3)
)  # fmt: skip


@given(st.sampled_from(FAMILIES), st.data())
@settings(max_examples=100, deadline=None)
def test_any_metadata_is_read_or_refused(family: str, data: st.DataObject) -> None:
    metadata = {**gguf_metadata(tiny_config(family)), "tokenizer.ggml.eos_token_id": 1}
    for key in data.draw(st.lists(st.sampled_from(sorted(metadata)), min_size=1, max_size=3)):
        metadata[key] = data.draw(GGUF_JUNK)
    given_ = Given({})
    given_.kind, given_.metadata = "gguf", metadata
    check_read_or_refused(given_)
