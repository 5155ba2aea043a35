"""GGUF editions of the tiny models give the logits of their safetensors editions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.files import load, write_folder
from tests.models.steps import decode_after, run
from tests.vectors.models.tiny import TINY, Tiny, prompt_tokens, tiny_tensors
from tests.weights.tiny import gguf_metadata, gguf_tensors
from tests.weights.writers import write_gguf


def without_scaling(tiny: Tiny) -> Tiny:
    return replace(tiny, config={name: value for name, value in tiny.config.items() if name != "rope_scaling"})


CASES: Mapping[str, tuple[Tiny, bool]] = {
    "llama: permuted q and k, rotary divisors, tied": (TINY["llama"], False),
    "llama: permuted biases": (TINY["llama_bias"], False),
    "qwen2": (without_scaling(TINY["qwen2"]), False),
    "qwen3": (without_scaling(TINY["qwen3"]), False),
    "deepseek2 Lite": (TINY["v2_lite"], False),
    "deepseek2 V2": (TINY["v2"], False),
    "deepseek2 V3": (TINY["v3"], False),
    "deepseek2 V3, old form of the latent projection": (TINY["v3"], True),
    "deepseek2 V2, old form of the latent projection": (TINY["v2"], True),
}


def write_twin(path: Path, tiny: Tiny, *, old_mla: bool, **extra: Any) -> Path:
    config = dict(tiny.config)
    tensors = gguf_tensors(config, tiny_tensors(tiny), old_mla=old_mla)
    return write_gguf(path, gguf_metadata(config, old_mla=old_mla) | extra, tensors)


@pytest.mark.parametrize("case", CASES)
def test_both_editions_give_the_same_logits(case: str, tmp_path: Path) -> None:
    tiny, old_mla = CASES[case]
    published = load(write_folder(tmp_path / "folder", tiny), tmp_path / "cache")
    twin = load(write_twin(tmp_path / "twin.gguf", tiny, old_mla=old_mla), tmp_path / "cache")
    tokens = prompt_tokens(tiny.config["vocab_size"], 40)
    expected = run(published, decode_after(tokens, 20))
    np.testing.assert_allclose(run(twin, decode_after(tokens, 20)), expected, atol=2e-5, rtol=0)


def test_yarn_of_a_dense_file_scales_cos_and_sin(tmp_path: Path) -> None:
    tiny = TINY["qwen3"]
    keys = {
        "qwen3.rope.scaling.type": "yarn",
        "qwen3.rope.scaling.factor": 4.0,
        "qwen3.rope.scaling.original_context_length": 160,
    }
    published = load(write_folder(tmp_path / "folder", tiny), tmp_path / "cache")
    twin = load(write_twin(tmp_path / "twin.gguf", tiny, old_mla=False, **keys), tmp_path / "cache")
    tokens = prompt_tokens(tiny.config["vocab_size"], 40)
    expected = run(published, decode_after(tokens, 20))
    np.testing.assert_allclose(run(twin, decode_after(tokens, 20)), expected, atol=2e-5, rtol=0)
