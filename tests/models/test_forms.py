"""The two forms of latent attention, and the precisions of the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finback import kernels
from finback.models import Model, deepseek
from tests.models.files import load, write_folder
from tests.models.steps import Piece, Steps, full, in_chunks, run
from tests.vectors.models.tiny import TINY, prompt_tokens

MLA = ("v2_lite", "v2", "v3", "v2_odd", "v3_odd")


def loaded(name: str, folder: Path) -> Model:
    return load(write_folder(folder / "model", TINY[name]), folder / "cache")


@pytest.mark.parametrize("name", MLA)
def test_absorbed_and_expanded_attention_have_the_same_value(name: str, tmp_path: Path) -> None:
    model = loaded(name, tmp_path)
    tokens = prompt_tokens(model.config.vocab_size, 60)
    expanded = run(model, full(tokens))
    absorbed = run(model, in_chunks(tokens, len(tokens), prompt=False))
    np.testing.assert_allclose(absorbed, expanded, atol=1e-4, rtol=0)
    assert not np.array_equal(absorbed, expanded)  # otherwise one of the forms was not run


@pytest.mark.parametrize("name", MLA)
def test_a_prompt_is_absorbed_from_a_position_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is on tile registers, whatever this machine has: chunks of any size have the same bits."""
    model = loaded(name, tmp_path)
    tokens = prompt_tokens(model.config.vocab_size, 60)
    expanded = run(model, full(tokens))
    monkeypatch.setattr(kernels, "latents_on_tiles", lambda cache, latent: True)
    monkeypatch.setattr(deepseek, "ABSORBED_FROM", 25)
    mixed = run(model, full(tokens))
    np.testing.assert_array_equal(mixed[:25], expanded[:25])
    np.testing.assert_allclose(mixed, expanded, atol=1e-4, rtol=0)
    assert (mixed[25:] != expanded[25:]).any(axis=1).all()
    for chunk in (1, 7, 25, 35):
        np.testing.assert_array_equal(run(model, in_chunks(tokens, chunk, prompt=True)), mixed)
    few = [replace(layer, attention=replace(layer.attention, working_bytes=1)) for layer in model.layers]
    np.testing.assert_array_equal(run(replace(model, layers=few), full(tokens)), mixed)


def test_both_forms_run_side_by_side_in_one_step(tmp_path: Path) -> None:
    model = loaded("v3", tmp_path)
    tokens = prompt_tokens(model.config.vocab_size, 30)
    alone = [run(model, full(tokens)), run(model, in_chunks(tokens, 30, prompt=False))]
    steps = Steps(model, seqs=2)
    together = steps.step([Piece(0, tokens, prompt=True), Piece(1, tokens, prompt=False)])
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float16, 0.02), (np.uint16, 0.12)])
@pytest.mark.parametrize("name", ["llama", "v3"])
def test_a_narrow_cache_costs_what_its_precision_costs(
    name: str, dtype: type, tolerance: float, tmp_path: Path
) -> None:
    model = loaded(name, tmp_path)
    tokens = prompt_tokens(model.config.vocab_size, 40)
    exact = run(model, full(tokens))
    narrow = run(model, full(tokens), dtype=dtype)
    difference = np.abs(narrow - exact).max()
    assert 0 < difference < tolerance


@pytest.mark.parametrize("name", ["v2_odd", "v3", "v3_fp8"])
def test_a_long_context_is_expanded_a_few_heads_at_a_time_with_the_same_bits(name: str, tmp_path: Path) -> None:
    model = loaded(name, tmp_path)
    tokens = prompt_tokens(model.config.vocab_size, 40)
    at_once = run(model, in_chunks(tokens, 20, prompt=True))
    for heads in (1, 3):
        head_bytes = 4 * 40 * (model.config.qk_nope_head_dim + model.config.v_head_dim)
        layers = [
            replace(layer, attention=replace(layer.attention, working_bytes=heads * head_bytes))
            for layer in model.layers
        ]
        grouped = run(replace(model, layers=layers), in_chunks(tokens, 20, prompt=True))
        np.testing.assert_array_equal(grouped, at_once)


def test_no_logits_are_computed_where_none_are_wanted(tmp_path: Path) -> None:
    model = loaded("v3", tmp_path)
    steps = Steps(model)
    batch = steps._batch([Piece(0, [5, 6, 7], prompt=True)])
    for wanted in ([], [2], [0, 2]):
        rows = np.array(wanted, np.int64)
        asked = type(batch)(**{name: getattr(batch, name) for name in batch.__slots__} | {"logit_rows": rows})
        assert model.forward(asked, steps.parts).shape == (len(wanted), model.config.vocab_size)


def test_the_cache_holds_one_latent_and_one_rotary_key_per_token(tmp_path: Path) -> None:
    assert loaded("v3", tmp_path).cache_layout() == [{"latent": (32 + 8,)}] * 3


def test_the_cache_of_grouped_queries_holds_the_shared_heads(tmp_path: Path) -> None:
    assert loaded("qwen3", tmp_path).cache_layout() == [{"k": (2, 24), "v": (2, 24)}] * 3
