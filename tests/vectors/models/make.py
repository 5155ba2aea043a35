"""Golden vectors of the tiny models: transformers computes logits and greedy tokens from the very same weights.

Each ``<name>.npz`` holds ``prompt``, ``positions`` with the ``logits`` there, the ``greedy`` continuation, ``margin``
(the smallest gap between the best two logits on the way: how near to a tie the greedy tokens came) and
``provenance``. Block-FP8 weights are multiplied out here, by :func:`tiny.dequantized`, in blocks of 128 x 128.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.vectors.models.tiny import TINY, Tiny, dequantized, prompt_tokens
from tests.weights.writers import write_safetensors_folder

PROMPT_TOKENS = 24
POSITIONS = (0, 6, 13, 23)
GREEDY_TOKENS = 64


def write_all(folder: Path) -> None:
    """One file per tiny model."""
    for name, tiny in TINY.items():
        vectors = golden(tiny)
        np.savez_compressed(folder / f"{name}.npz", **vectors)
        print(f"{name}: logit std {vectors['logits'].std():.2f}, smallest margin {vectors['margin']:.4f}")


def golden(tiny: Tiny) -> dict[str, Any]:
    """What a golden file holds."""
    with tempfile.TemporaryDirectory() as folder:
        oracle = load_oracle(write_safetensors_folder(Path(folder), tiny.config, dequantized(tiny)))
        prompt = prompt_tokens(tiny.config["vocab_size"], PROMPT_TOKENS)
        greedy = greedy_tokens(oracle, prompt, GREEDY_TOKENS)
        logits = oracle_logits(oracle, prompt + greedy)
    best = np.sort(logits[PROMPT_TOKENS - 1 : -1], axis=1)
    return {
        "prompt": np.array(prompt, np.int64),
        "positions": np.array(POSITIONS, np.int64),
        "logits": logits[list(POSITIONS)],
        "greedy": np.array(greedy, np.int64),
        "margin": np.float32((best[:, -1] - best[:, -2]).min()),
        "provenance": provenance(),
    }


def provenance() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch", "numpy"))
    return f"{packages}; float32, eager attention, CPU; weights from tests/vectors/models/tiny.py"


def load_oracle(folder: Path, **options: Any) -> Any:
    """The model as transformers reads it, in float32, after checking that it took every tensor and missed none."""
    torch.set_num_threads(1)  # the models are so small that threads would only wait for each other
    options |= {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    wrong = {kind: names for kind, names in report.items() if names}
    if wrong:
        raise RuntimeError(f"transformers did not load {folder} as it stands: {wrong}")
    return model.eval()


@torch.no_grad()
def oracle_logits(model: Any, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits of every position, computed in one pass without a cache."""
    logits: np.ndarray[Any, np.dtype[np.float32]]
    logits = model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float().numpy()
    return logits


@torch.no_grad()
def greedy_tokens(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The next ``count`` tokens, each the smallest index among the best logits of a full pass."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(oracle_logits(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]
