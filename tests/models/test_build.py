"""A model is refused before any work when its weights do not fit its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finback.errors import MissingTensor, ShapeMismatch, UnsupportedModel
from finback.models import Batch, Segment, build
from finback.weights.checkpoint import open_checkpoint
from finback.weights.config import ModelConfig
from finback.weights.pack import load_weights
from tests.models.files import write_folder
from tests.vectors.models.tiny import TINY


class Changed(Mapping[str, Any]):
    """Weights with one field replaced, or gone (None)."""

    def __init__(self, weights: Mapping[str, Any], name: str, value: Any) -> None:
        self._fields = {field: weights[field] for field in weights} | {name: value}
        if value is None:
            del self._fields[name]

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def parts(name: str, folder: Path) -> tuple[ModelConfig, Mapping[str, Any]]:
    checkpoint = open_checkpoint(write_folder(folder / "model", TINY[name]))
    config = ModelConfig.from_checkpoint(checkpoint)
    return config, load_weights(checkpoint, config, cache_dir=folder / "cache")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("llama", "embed"),
        ("llama", "layers.1.attn.k"),
        ("qwen2", "head"),
        ("qwen3", "layers.0.attn.q_norm"),
        ("v3", "layers.0.mlp.down"),
        ("v3", "layers.2.attn.k_absorb"),
        ("v3", "layers.1.moe.shared_up"),
    ],
)
def test_a_missing_field_is_named(name: str, field: str, tmp_path: Path) -> None:
    config, weights = parts(name, tmp_path)
    build(config, weights)
    with pytest.raises(MissingTensor, match=field):
        build(config, Changed(weights, field, None))


@pytest.mark.parametrize("field", ["norm", "layers.0.attn.kv_a_norm", "layers.1.moe.router_bias"])
def test_a_vector_of_another_length_is_refused(field: str, tmp_path: Path) -> None:
    config, weights = parts("v3", tmp_path)
    with pytest.raises(ShapeMismatch, match=field):
        build(config, Changed(weights, field, np.ones(5, np.float32)))


@pytest.mark.parametrize("field", ["embed", "layers.2.moe.gate", "layers.0.attn.v_up"])
def test_a_matrix_of_another_shape_is_refused(field: str, tmp_path: Path) -> None:
    config, weights = parts("v3", tmp_path)
    with pytest.raises(ShapeMismatch, match=field):
        build(config, Changed(weights, field, weights["layers.0.mlp.gate"]))


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    config, weights = parts("llama", tmp_path)
    with pytest.raises(UnsupportedModel, match="mamba"):
        build(replace(config, model_type="mamba"), weights)


def batch(**changes: Any) -> Batch:
    sound: dict[str, Any] = {
        "tokens": np.arange(5),
        "positions": np.array([4, 5, 6, 0, 1], np.int32),
        "seq_ids": np.array([0, 0, 0, 1, 1], np.int32),
        "slots": np.array([12, 13, 14, 0, 1]),
        "block_tables": np.array([[2, 1], [0, 3]], np.int32),
        "segments": (Segment(0, 2, 0, 4, True), Segment(2, 3, 0, 6, False), Segment(3, 5, 1, 0, True)),
        "logit_rows": np.array([4]),
    }
    return Batch(**sound | changes)


def test_a_batch_knows_its_roles_and_contexts() -> None:
    sound = batch()
    sound.check_integrity()
    assert [segment.context for segment in sound.segments] == [6, 7, 2]
    assert sound.prompts.tolist() == [[0, 2], [3, 5]]
    assert batch(segments=(Segment(0, 5, 0, 4, False),)).prompts.shape == (0, 2)


@pytest.mark.parametrize(
    "segments",
    [
        (Segment(0, 2, 0, 4, True), Segment(3, 5, 1, 0, True)),
        (Segment(0, 3, 0, 4, True), Segment(2, 5, 1, 0, True)),
        (Segment(0, 3, 0, 5, True), Segment(3, 5, 1, 0, True)),
        (Segment(0, 3, 1, 4, True), Segment(3, 5, 1, 0, True)),
    ],
)
def test_segments_that_contradict_the_rows_are_found(segments: tuple[Segment, ...]) -> None:
    with pytest.raises(AssertionError):
        batch(segments=segments).check_integrity()
