"""What a tokenizer's files may say, and what becomes of files that say something else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finback.errors import FinbackError, TokenizerError, UnsupportedModel
from finback.text.load import load_tokenizer
from finback.text.tokenizer import Tokenizer
from finback.text.vocabulary_gguf import read_gguf
from finback.weights.checkpoint import open_checkpoint
from tests.text.vocabularies import CHATML_MARKUP, folder, small_metadata
from tests.weights.writers import write_safetensors

SIZE = len(small_metadata()["tokenizer.ggml.tokens"])


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": "llama"}, UnsupportedModel, "of the kind 'llama'"),
        ({"model": 3}, TokenizerError, "model must be str"),
        ({"pre": "tekken"}, UnsupportedModel, "'tekken'"),
        ({"pre": ["gpt-2"]}, TokenizerError, "pre must be str"),
        ({"tokens": None}, TokenizerError, "tokens must be a list of strings"),
        ({"tokens": [1, 2]}, TokenizerError, "tokens must be a list of strings"),
        ({"tokens": [], "token_type": [], "merges": []}, TokenizerError, "has no tokens"),
        ({"merges": None}, TokenizerError, "merges must be a list of strings"),
        ({"merges": ["ab"]}, TokenizerError, "does not join two symbols"),
        ({"merges": ["a b c", "d"]}, TokenizerError, "does not join two symbols"),
        ({"merges": ["h zz"]}, TokenizerError, "merges cannot be used"),
        ({"merges": ["a b"]}, TokenizerError, "merges cannot be used"),
        ({"tokens": ["a", "b"], "token_type": [1, 1], "merges": ["a b"]}, TokenizerError, "which is not a token"),
        ({"token_type": [1]}, TokenizerError, f"a list of {SIZE} numbers"),
        ({"token_type": "1" * SIZE}, TokenizerError, f"a list of {SIZE} numbers"),
        ({"bos_token_id": SIZE}, TokenizerError, "first or last"),
        ({"eos_token_id": -1}, TokenizerError, "first or last"),
        ({"eot_token_id": 1 << 40}, TokenizerError, "first or last"),
        ({"eos_token_id": "2"}, TokenizerError, "eos_token_id must be int"),
        ({"add_bos_token": 1}, TokenizerError, "add_bos_token must be bool"),
        ({"add_bos_token": True}, TokenizerError, "does not say which"),
    ],
)
def test_bad_metadata(changes: dict[str, Any], error: type[FinbackError], says: str) -> None:
    metadata = small_metadata(**changes) if "pre" in changes else small_metadata() | _prefixed(changes)
    with pytest.raises(error, match=says):
        Tokenizer(read_gguf(metadata))


def _prefixed(changes: dict[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def test_without_pre_and_types_the_defaults_hold() -> None:
    metadata = small_metadata()
    del metadata["tokenizer.ggml.pre"], metadata["tokenizer.ggml.token_type"]
    assert Tokenizer(read_gguf(metadata)).decode(Tokenizer(read_gguf(metadata)).encode("héllo 1234")) == "héllo 1234"


@pytest.mark.parametrize("text", ["", "a\ud800"])
def test_an_added_token_that_is_no_text(text: str) -> None:
    with pytest.raises(TokenizerError, match="is not text"):
        read_gguf(small_metadata(markup=(text,)))


def test_all_ends_of_turn_end_an_answer() -> None:
    vocabulary = read_gguf(small_metadata(CHATML_MARKUP) | _prefixed({"eos_token_id": 0, "eot_token_id": 1}))
    assert vocabulary.eos_id == 0
    assert vocabulary.eos_ids == {0, 1, SIZE, SIZE + 2}  # also <|endoftext|> and <|im_end|>


def test_markup_that_a_converter_called_normal_is_control() -> None:
    metadata = small_metadata(markup=("<｜User｜>",))
    metadata["tokenizer.ggml.token_type"][-1] = 1
    tokenizer = Tokenizer(read_gguf(metadata))
    assert tokenizer.encode("<｜User｜>") == [SIZE]
    assert SIZE not in tokenizer.encode("<｜User｜>", special=False)


@pytest.mark.parametrize("adds", [None, True, False])
def test_llama_adds_bos_unless_the_file_says_otherwise(adds: bool | None) -> None:
    changes = {"bos_token_id": SIZE} | ({} if adds is None else {"add_bos_token": adds})
    vocabulary = read_gguf(small_metadata(markup=("<|begin|>",), pre="llama-bpe") | _prefixed(changes))
    assert vocabulary.adds_bos == (adds is not False)


# --- tokenizer.json


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """``load(change, **files)``: load a folder whose tokenizer.json went through ``change``."""

    def load(change: Any = None, metadata: dict[str, Any] | None = None, **files: Any) -> Tokenizer:
        path = folder(tmp_path / "model", metadata or small_metadata(CHATML_MARKUP), **files)
        write_safetensors(path / "model.safetensors", {"a": np.ones(1, np.float32)})
        content = json.loads((path / "tokenizer.json").read_text())
        changed = change(content) if change else None
        (path / "tokenizer.json").write_text(json.dumps(content if changed is None else changed))
        return load_tokenizer(open_checkpoint(path))

    return load


def _set(*path: Any, to: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda c: [], TokenizerError, "cannot be used"),
        (lambda c: {}, TokenizerError, "missing required field `model`"),
        (_set("model", "type", to="Unigram"), UnsupportedModel, "'Unigram'"),
        (_set("model", "vocab", to=[["a", 1]]), TokenizerError, "cannot be used"),
        (_set("model", "vocab", "a", to=-5), TokenizerError, "ids go from -5"),
        (_set("model", "vocab", "a", to=1 << 40), TokenizerError, "ids go from"),
        (_set("model", "vocab", "a", to=1.5), TokenizerError, "cannot be used"),
        (_set("model", "merges", to=[["a", "b", "c"]]), TokenizerError, "cannot be used"),
        (_set("model", "merges", to=["a  b"]), TokenizerError, "does not join two symbols"),
        (_set("model", "merges", to=[["h", "zz"]]), TokenizerError, "merges cannot be used"),
        (_set("model", "byte_fallback", to=True), UnsupportedModel, "does not work on bytes"),
        (_set("model", "dropout", to=0.1), UnsupportedModel, "at random"),
        (_set("added_tokens", to=[{"id": "1", "content": "x"}]), TokenizerError, "cannot be used"),
        (_set("normalizer", to={"type": "Lowercase"}), UnsupportedModel, "'Lowercase'"),
        (_set("normalizer", to={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}),
         UnsupportedModel, "'Strip'"),
        (_set("pre_tokenizer", to=None), UnsupportedModel, "no pre_tokenizer"),
        (_set("pre_tokenizer", to={"type": "Whitespace"}), UnsupportedModel, "does not work on bytes"),
        (_set("pre_tokenizer", "pretokenizers", to="x"), TokenizerError, "must be a list"),
        (_set("pre_tokenizer", "pretokenizers", 0, "pattern", to={"Regex": "(a+)+$"}),
         UnsupportedModel, "does not know"),
        (_set("pre_tokenizer", "pretokenizers", 0, "pattern", to={"String": " "}),
         UnsupportedModel, "regular expression"),
        (_set("pre_tokenizer", "pretokenizers", 0, "behavior", to="Removed"), UnsupportedModel, "isolate"),
        (_set("pre_tokenizer", "pretokenizers", 0, to={"type": "Metaspace"}), UnsupportedModel, "'Metaspace'"),
    ],
)  # fmt: skip
def test_bad_json(load: Any, change: Any, error: type[FinbackError], says: str) -> None:
    with pytest.raises(error, match=says):
        load(change)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", small_metadata())
    write_safetensors(path / "model.safetensors", {"a": np.ones(1, np.float32)})
    (path / "tokenizer.json").write_text('{"model": ' + "[" * 100_000)
    with pytest.raises(TokenizerError):
        load_tokenizer(open_checkpoint(path))


def test_merges_as_pairs_or_lines(load: Any) -> None:
    def as_pairs(content: dict[str, Any]) -> None:
        content["model"]["merges"] = [merge.split(" ") for merge in content["model"]["merges"]]

    assert load(as_pairs).encode("hello the") == load().encode("hello the")


def test_roles_of_tokens_in_a_folder(load: Any) -> None:
    start, end = SIZE + 1, SIZE + 2
    tokenizer = load(
        tokenizer_config={"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "add_bos_token": True},
        generation_config={"eos_token_id": [end, SIZE]},
        config={"eos_token_id": 5},
    )
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (start, end, True)
    assert tokenizer.eos_ids == {end, SIZE, 5}


def test_roles_without_a_tokenizer_config(load: Any) -> None:
    tokenizer = load(config={"eos_token_id": SIZE + 2, "bos_token_id": SIZE + 1})
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (SIZE + 1, SIZE + 2, False)


@pytest.mark.parametrize("nested", [False, True])
def test_the_post_processor_tells_of_bos(load: Any, nested: bool) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    }
    processor = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]} if nested else template
    config = {"bos_token": "<|im_start|>"}
    assert load(_set("post_processor", to=processor), tokenizer_config=config).adds_bos
    after = copy.deepcopy(template)
    after["single"].reverse()
    assert not load(_set("post_processor", to=after), tokenizer_config=config).adds_bos


def test_published_spellings_of_known_patterns(load: Any) -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}
    plain = load(_set("pre_tokenizer", to=byte_level))
    assert plain.encode("hello the 12") == load().encode("hello the 12")
    assert load(_set("pre_tokenizer", to=digits)).encode("hello") == plain.encode("hello")
    spaces = {"type": "Split", "pattern": {"Regex": r"\s+$"}, "behavior": "Isolated", "invert": False}
    load(_set("pre_tokenizer", "pretokenizers", 0, to=spaces))


def test_a_leading_space_is_added_where_the_file_asks_for_it(load: Any) -> None:
    spaced = load(_set("pre_tokenizer", to={"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}))
    assert spaced.encode("the") == load().encode(" the")
