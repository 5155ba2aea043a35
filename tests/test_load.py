"""Loading real files of every family, and what is refused before the weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finback
from finback import api, kernels
from finback.config import Settings
from finback.engine.request import SamplingParams
from finback.errors import ConfigError, FinbackError, MalformedFile, ModelTooLarge, UnknownModel
from tests.weights.tiny import FAMILIES, VOCAB_SIZE, write_tiny_folder, write_tiny_gguf

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", threads=2)


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = kernels.threads()
    yield
    kernels.set_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers(tmp_path: Path, settings: Settings, family: str) -> None:
    folder = write_tiny_folder(tmp_path / "model", family)
    with finback.load(folder, settings=settings) as model:
        assert model.config.vocab_size == VOCAB_SIZE
        completion = model.generate("Hi there", max_tokens=8, temperature=0, ignore_eos=True)
        assert len(completion.tokens) == 8
        assert completion.usage.prompt_tokens == 1 + len(model.tokenizer.encode("Hi there"))
        logits = model.logits(model.tokenizer.encode("Hi there", bos=True))
        assert int(logits[-1].argmax()) == completion.tokens[0]
        assert model.chat(MESSAGES, max_tokens=4, seed=1).usage.completion_tokens <= 4
        model.engine.check_integrity()


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_and_safetensors_agree(tmp_path: Path, settings: Settings, family: str) -> None:
    tokens = [0, 10, 20, 30, 40]
    with finback.load(write_tiny_folder(tmp_path / "model", family), settings=settings) as model:
        expected = model.logits(tokens)
    with finback.load(write_tiny_gguf(tmp_path / "model.gguf", family), settings=settings) as model:
        assert np.abs(model.logits(tokens) - expected).max() < 2e-4


def test_published_sampling_settings_are_the_defaults(tmp_path: Path, settings: Settings) -> None:
    with finback.load(write_tiny_folder(tmp_path / "model", "llama"), settings=settings) as model:
        assert model.defaults == SamplingParams(temperature=0.6, top_p=0.95)
    with finback.load(write_tiny_gguf(tmp_path / "m.gguf", "llama"), settings=settings) as model:
        assert model.defaults == SamplingParams()


def test_settings_are_resolved_and_shown(tmp_path: Path, settings: Settings) -> None:
    folder = write_tiny_folder(tmp_path / "model", "llama")
    with finback.load(folder, threads=1, context=100, settings=settings) as model:
        shown = model.settings
        assert (shown.threads, shown.context, shown.kv_dtype, model.context) == (1, 100, "f32", 100)
        assert kernels.threads() == 1
        assert model.name == str(folder)
    with finback.load(folder, settings=Settings(home=settings.home)) as model:
        assert model.settings.threads is not None
        assert model.context == model.config.max_position_embeddings == 512


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when weights are read."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("weights were read")

    monkeypatch.setattr(api, "load_weights", refuse)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": 0}, ConfigError, "threads"),
        ({"threads": "two"}, ConfigError, "threads"),
        ({"context": -5}, ConfigError, "context"),
        ({"context": 513}, ConfigError, "512"),
        ({"format": "q3"}, ConfigError, "format"),
    ],
)
def test_bad_options_are_refused_first(
    tmp_path: Path, settings: Settings, options: dict[str, Any], error: type[FinbackError], message: str
) -> None:
    folder = write_tiny_folder(tmp_path / "model", "llama")
    with pytest.raises(error, match=message):
        finback.load(folder, settings=settings, **options)


@pytest.mark.usefixtures("no_weights")
def test_a_context_beyond_memory_is_refused_first(tmp_path: Path, settings: Settings) -> None:
    folder = write_tiny_folder(tmp_path / "model", "llama", max_position_embeddings=1 << 24)
    with pytest.raises(ModelTooLarge, match="room for"):
        finback.load(folder, context=1 << 24, settings=settings)


@pytest.mark.usefixtures("no_weights")
def test_weights_beyond_memory_are_refused_first(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.Checkpoint, "nbytes", 1 << 60)
    with pytest.raises(ModelTooLarge, match="weights"):
        finback.load(write_tiny_folder(tmp_path / "model", "llama"), settings=settings)


@pytest.mark.usefixtures("no_weights")
def test_published_settings_that_cannot_be_used(tmp_path: Path, settings: Settings) -> None:
    folder = write_tiny_folder(tmp_path / "model", "llama")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": "hot"}))
    with pytest.raises(MalformedFile, match="temperature"):
        finback.load(folder, settings=settings)


def test_what_is_not_there(tmp_path: Path, settings: Settings) -> None:
    for name in (tmp_path / "nothing", tmp_path / "nothing.gguf", "nothing:7b"):
        with pytest.raises(UnknownModel):
            finback.load(name, settings=settings)
