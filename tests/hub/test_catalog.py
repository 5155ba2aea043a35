"""The catalog tells the truth and finds what people mean."""

from __future__ import annotations

import re

import pytest

from finback.hub.catalog import CATALOG, DEFAULT_MODEL, Repository, Wheel, find, matches, nearest, true_name


def test_names_are_family_size_format_and_unique() -> None:
    names = [entry.name for entry in CATALOG]
    assert len(set(names)) == len(names)
    for entry in CATALOG:
        assert re.fullmatch(r"[a-z0-9.-]+:[0-9.]+[bm]-[a-z0-9_]+", entry.name), entry.name
        assert entry.name.endswith("-" + entry.format.lower())


def test_no_distillation_is_called_deepseek_r1() -> None:
    for entry in CATALOG:
        distilled = "Distill" in entry.title or "Qwen3" in entry.title
        assert entry.is_distillation == distilled, entry.name
        assert not (distilled and entry.name.startswith("deepseek")), entry.name
        if entry.name.startswith("deepseek-r1"):
            assert entry.parameters > 600e9


def test_figures_are_plausible() -> None:
    bits = {"BF16": (15.9, 16.1), "FP8": (8.0, 8.4), "Q4_K_M": (4.6, 5.5), "Q4_1": (4.9, 6.0)}
    for entry in CATALOG:
        low, high = bits[entry.format]
        assert low <= 8 * entry.size_bytes / entry.parameters <= high, entry.name
        assert 0 < entry.active_parameters <= entry.parameters
        assert entry.kv_bytes_per_token > 0
        assert entry.context >= 8192


def test_published_models_come_from_their_makers() -> None:
    for entry in CATALOG:
        if isinstance(entry.source, Repository) and entry.format in ("BF16", "FP8"):
            assert entry.source.repo.startswith("deepseek-ai/")


def test_the_default_model_is_pinned() -> None:
    entry = find(DEFAULT_MODEL)
    assert entry is not None
    assert isinstance(entry.source, Wheel)
    assert re.fullmatch(r"[0-9a-f]{64}", entry.source.sha256)
    assert entry.sha256 == entry.source.member_sha256


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("smollm2", DEFAULT_MODEL),
        ("SmolLM2:135M-Q4_1", DEFAULT_MODEL),
        ("r1-distill-qwen:7b", "r1-distill-qwen:7b-q4_k_m"),
        ("r1-distill-qwen:7b-bf16", "r1-distill-qwen:7b-bf16"),
        ("deepseek-r1", "deepseek-r1:671b-q4_k_m"),
        ("deepseek-v3", "deepseek-v3:671b-q4_k_m"),
        ("r1-distill-qwen", None),
        ("r1", None),
        ("", None),
    ],
)
def test_find(text: str, name: str | None) -> None:
    found = find(text)
    assert (found and found.name) == name


def test_an_ambiguous_family_lists_its_members() -> None:
    assert len({entry.title for entry in matches("r1-distill-qwen")}) == 4
    assert nearest("r1-distill-qwen")[0] == "r1-distill-qwen:1.5b-q4_k_m"


@pytest.mark.parametrize(
    ("text", "name"), [("smolm2", "smollm2:135m-q4_1"), ("r1-distil-qwen:7b", "r1-distill-qwen:7b-bf16")]
)
def test_misspellings_are_understood(text: str, name: str) -> None:
    assert name in nearest(text)


def test_pulled_names_are_offered_too() -> None:
    assert nearest("mymodle", ["local/mymodel"]) == ["local/mymodel"]
    assert nearest("xyzzy") == []


@pytest.mark.parametrize(
    ("wrong", "true"), [("deepseek-r1:7b", "r1-distill-qwen:7b"), ("deepseek-r1:70b-q4", "r1-distill-llama:70b")]
)
def test_misnomers_are_answered_with_the_true_name(wrong: str, true: str) -> None:
    answer = true_name(wrong)
    assert answer is not None
    assert answer.startswith(true)
    assert find(answer)
    assert true_name("deepseek-r1:671b") is None
