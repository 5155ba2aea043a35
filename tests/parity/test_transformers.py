"""Live comparison with transformers: models that it saved, of known and of random dimensions, loaded by both.

A full forward pass, a prompt in chunks and a step-by-step decode must give its logits, and greedy decoding its tokens.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.files import load, write_folder
from tests.models.steps import PLANS, greedy, run
from tests.vectors.models.tiny import LLAMA3, TINY, V2, V3, YARN, Tiny, dense_config, prompt_tokens

pytestmark = pytest.mark.parity

TOLERANCE = 2e-4  # of logits whose standard deviation is about 1
GREEDY_TOKENS = 64
NEAR_TIE = 1e-4  # best two logits closer than this: either token is right
FP8 = [name for name, tiny in TINY.items() if tiny.fp8_scales and "edge" not in name]


def check(folder: Path, oracle: Any, cache: Path, tokens: list[int]) -> None:
    """Finback's reading of ``folder`` against transformers' model of it."""
    from tests.vectors.models.make import greedy_tokens, oracle_logits

    model = load(folder, cache)
    expected = oracle_logits(oracle, tokens)
    assert 0.5 < expected.std() < 2
    for plan, steps in PLANS.items():
        np.testing.assert_allclose(run(model, steps(tokens)), expected, atol=TOLERANCE, rtol=0, err_msg=plan)
    theirs = greedy_tokens(oracle, tokens[:20], GREEDY_TOKENS)
    ours = greedy(model, tokens[:20], GREEDY_TOKENS)
    first = next((i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]), None)
    if first is not None:
        logits = oracle_logits(oracle, tokens[:20] + theirs[:first])[-1]
        assert logits[theirs[first]] - logits[ours[first]] < NEAR_TIE, f"token {first} of the greedy continuation"


def check_saved(tiny: Tiny, tmp_path: Path) -> None:
    """Let transformers load the tiny model and save it again, and compare on what it saved."""
    from tests.vectors.models.make import load_oracle

    oracle = load_oracle(write_folder(tmp_path / "written", tiny))
    oracle.save_pretrained(tmp_path / "saved")
    check(tmp_path / "saved", oracle, tmp_path / "cache", prompt_tokens(tiny.config["vocab_size"], 48, tiny.seed))


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if not tiny.fp8_scales])
def test_models_saved_by_transformers(name: str, tmp_path: Path) -> None:
    check_saved(replace(TINY[name], seed=11), tmp_path)


@pytest.mark.parametrize("scales", ["f32", "e8m0"])
@pytest.mark.parametrize("name", FP8)
def test_block_fp8_against_its_dequantised_load(name: str, scales: str, tmp_path: Path) -> None:
    from transformers import FineGrainedFP8Config

    from tests.vectors.models.make import load_oracle

    tiny = replace(TINY[name], seed=12, fp8_scales=scales)
    folder = write_folder(tmp_path / "model", tiny)
    oracle = load_oracle(folder, quantization_config=FineGrainedFP8Config(dequantize=True))
    check(folder, oracle, tmp_path / "cache", prompt_tokens(tiny.config["vocab_size"], 48, 12))


def random_dense(rng: random.Random) -> dict[str, Any]:
    """A llama, qwen2 or qwen3 configuration of any dimensions."""
    kv_heads = rng.randint(1, 4)
    heads = kv_heads * rng.randint(1, 4)
    dim = 2 * rng.randint(2, 20)
    kind = rng.choice(["llama", "qwen2", "qwen3"])
    linear = {"rope_type": "linear", "factor": rng.uniform(1, 8)}
    yarn = {"rope_type": "yarn", "factor": rng.uniform(1, 8), "original_max_position_embeddings": rng.randint(16, 128)}
    own: dict[str, Any] = {
        "vocab_size": rng.randint(60, 300),
        "hidden_size": heads * rng.randint(4, 30) if kind != "qwen2" else heads * dim,
        "intermediate_size": rng.randint(20, 200),
        "num_hidden_layers": rng.randint(1, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "rope_theta": rng.choice([100.0, 10000.0, 1e6]),
        "tie_word_embeddings": rng.random() < 0.4,
        "attention_bias": kind != "qwen2" and rng.random() < 0.4,
        "rope_scaling": rng.choice([None, LLAMA3, linear, yarn, yarn | {"attention_factor": 1.3}]),
    }
    return dense_config(kind, **own) | ({} if kind == "qwen2" else {"head_dim": dim})


def random_deepseek(rng: random.Random) -> dict[str, Any]:
    """A deepseek_v2 or deepseek_v3 configuration of any dimensions and routing."""
    v3 = rng.random() < 0.5
    groups = rng.choice([1, 1, 2, 3, 4])
    per_group = rng.randint(2, 5)
    chosen = rng.randint(1, groups)
    heads = rng.randint(1, 6)
    yarn = YARN | {
        "factor": rng.uniform(1, 40),
        "mscale": rng.choice([0.707, 1.0]),
        "mscale_all_dim": rng.choice([0.5, 1]),
    }
    unscaled = {name: value for name, value in yarn.items() if not name.startswith("mscale")}
    own: dict[str, Any] = {
        "vocab_size": rng.randint(60, 300),
        "hidden_size": heads * rng.randint(5, 30),
        "intermediate_size": rng.randint(20, 200),
        "moe_intermediate_size": rng.randint(8, 70),
        "num_hidden_layers": rng.randint(1, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "kv_lora_rank": 2 * rng.randint(2, 30),  # even, like the next: transformers views V2's rotary part as complex
        "q_lora_rank": rng.choice([None, rng.randint(3, 60)]),
        "qk_nope_head_dim": 2 * rng.randint(1, 20),
        "qk_rope_head_dim": 2 * rng.randint(2, 16),
        "v_head_dim": rng.randint(2, 40),
        "n_routed_experts": groups * per_group,
        "num_experts_per_tok": rng.randint(1, chosen * per_group),
        "n_shared_experts": rng.randint(1, 3),
        "first_k_dense_replace": rng.randint(0, 2),
        "n_group": groups,
        "topk_group": chosen,
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        "attention_bias": rng.random() < 0.3,
        "tie_word_embeddings": rng.random() < 0.2,
        "norm_topk_prob": rng.random() < 0.5,
        "routed_scaling_factor": rng.choice([1.0, 2.5, 5.0]),
        "rope_scaling": rng.choice([None, yarn, unscaled]),
    }
    if v3:
        return V3 | own | {"rope_interleave": rng.random() < 0.7}
    return V2 | own | {"topk_method": rng.choice(["greedy", "group_limited_greedy"])}


RANDOM: Mapping[str, Any] = {"dense": random_dense, "deepseek": random_deepseek}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("family", RANDOM)
def test_models_of_random_dimensions(family: str, seed: int, tmp_path: Path) -> None:
    config = RANDOM[family](random.Random(f"{family} {seed}"))
    check_saved(Tiny(config, seed=100 + seed), tmp_path)
