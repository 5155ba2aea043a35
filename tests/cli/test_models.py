"""Models that are asked for and not here: fetched unasked, after a yes, or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import pytest

from finback.cli import models
from finback.cli.models import ensure_here, sampling_of
from finback.config import Settings
from finback.errors import UnknownModel
from finback.hardware import Memory
from finback.hub.catalog import DEFAULT_MODEL
from tests.cli.conftest import Cli, put_model
from tests.hub.conftest import REPO, FakeHub

LARGER = "r1-distill-qwen:7b-q4_k_m"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(models, "_fetch", lambda name, settings: names.append(name))
    return names


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, says: bool | None) -> list[str]:
    """Whether somebody is there to answer, and what they say."""
    asked: list[str] = []

    def confirm(question: str, **options: Any) -> bool:
        asked.append(question)
        return bool(says)

    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: says is not None, raising=False)
    monkeypatch.setattr(click, "confirm", confirm)
    return asked


def test_what_is_here_is_not_fetched(home: Path, fetched: list[str]) -> None:
    put_model(home, LARGER)
    assert ensure_here("r1-distill-qwen:7b", Settings(home=home)) == "r1-distill-qwen:7b"
    assert fetched == []


@pytest.mark.parametrize("name", [DEFAULT_MODEL, "smollm2"])
def test_the_default_model_is_fetched_unasked(home: Path, fetched: list[str], name: str) -> None:
    assert ensure_here(name, Settings(home=home)) == DEFAULT_MODEL
    assert fetched == [DEFAULT_MODEL]


def test_a_larger_one_is_fetched_after_a_yes(home: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = at_a_terminal(monkeypatch, says=True)
    assert ensure_here("r1-distill-qwen:7b", Settings(home=home)) == LARGER
    assert fetched == [LARGER]
    assert "about 4.68 GB" in asked[0]


@pytest.mark.parametrize("says", [False, None])
def test_and_not_otherwise(home: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch, says: bool | None) -> None:
    asked = at_a_terminal(monkeypatch, says=says)
    with pytest.raises(UnknownModel) as caught:
        ensure_here(LARGER, Settings(home=home))
    assert caught.value.hint == f"finback pull {LARGER}"
    assert fetched == []
    assert len(asked) == (says is False)


def test_unknown_names_are_never_fetched(home: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    at_a_terminal(monkeypatch, says=True)
    for name in ("xyzzy", "deepseek-r1:7b", "someone/Some-Model", "./x.gguf"):
        with pytest.raises(UnknownModel):
            ensure_here(name, Settings(home=home))
    assert fetched == []


def test_known_models_get_the_settings_that_suit_them() -> None:
    from finback.engine.request import SamplingParams

    class Model:
        defaults = SamplingParams()

    assert sampling_of("r1-distill-qwen:7b", Model()) == {"temperature": 0.6, "top_p": 0.95}
    assert sampling_of("./x.gguf", Model()) == {}
    Model.defaults = SamplingParams(temperature=0.3)
    assert sampling_of("r1-distill-qwen:7b", Model()) == {}


def test_a_model_that_memory_cannot_hold_is_announced(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("finback.hardware.memory", lambda: Memory(8 * 10**9, 10**9, limited=False))
    assert "takes about 404 GB of memory; this machine has 8 GB" in cli("pull", "deepseek-r1", status=1).err
    assert "takes about" not in cli("pull", "r1-distill-qwen:7b", status=1).err
    hub.close()


@pytest.mark.parametrize("config", [b'{"model_type": "deepseek_v9"}', b"{}", b"[]", b"{", b'{"model_type": {}}'])
def test_an_architecture_that_does_not_run_is_refused_before_the_weights(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, config: bytes
) -> None:
    hub = FakeHub()
    hub.files = {"config.json": config, "model.safetensors": bytes(5000)}
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    outcome = cli("pull", REPO, status=1)
    hub.close()
    assert "error: " in outcome.err
    assert not hub.asked_for("model.safetensors")
    if b"v9" in config:
        assert "deepseek_v9" in outcome.err
        assert "hint: " in outcome.err


def test_a_repository_is_pulled_by_command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    hub.files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(5000)}
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    outcome = cli("pull", REPO, "--json", status=0)
    hub.close()
    assert outcome.json["name"] == f"hf.co/{REPO}"
    assert [file["path"] for file in outcome.json["files"]] == ["config.json", "model.safetensors"]
    assert f"hf.co/{REPO}: complete" in outcome.err
