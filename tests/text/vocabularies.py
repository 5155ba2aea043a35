"""Vocabularies for tests: the published ones that are kept in small, and made-up ones with any markup."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from finback.text.pretokenizers import FAMILIES
from finback.text.tokenizer import BYTE_OF, Tokenizer
from finback.text.vocabulary import AddedToken, make_vocabulary
from finback.text.vocabulary_gguf import read_gguf

VECTORS = Path(__file__).parent.parent / "vectors" / "tokenizer"
PUBLISHED = ("deepseek-llm", "deepseek-coder", "gpt-2")
CASES: dict[str, list[dict[str, Any]]] = json.loads((VECTORS / "cases.json").read_text(encoding="utf-8"))

DEEPSEEK_MARKUP = (
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
    *("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
)
CHATML_MARKUP = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")


@cache
def published_metadata(name: str) -> Mapping[str, Any]:
    """The ``tokenizer.ggml`` keys of a published vocabulary."""
    data = json.loads(lzma.decompress((VECTORS / f"{name}.json.xz").read_bytes()))
    made = [merge.replace(" ", "") for merge in data["merges"]]
    tokens = [*data["before"], *made, *data["after"]]
    types = [1] * len(tokens)
    for id, kind in data["types"]:
        types[id] = kind
    lists = {"tokens": tokens, "token_type": types, "merges": data["merges"]}
    return {**data["metadata"], **{f"tokenizer.ggml.{key}": value for key, value in lists.items()}}


@cache
def published(name: str) -> Tokenizer:
    """A published tokenizer."""
    return Tokenizer(read_gguf(published_metadata(name)))


def small_metadata(
    markup: Sequence[str] = (), *, user_defined: Sequence[str] = (), pre: str = "gpt-2", **more: Any
) -> dict[str, Any]:
    """Metadata of a vocabulary of bytes, a few merges, and the added tokens given."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ t"]
    tokens = [*BYTE_OF, *(merge.replace(" ", "") for merge in merges), *markup, *user_defined]
    plain = len(BYTE_OF) + len(merges)
    types = [1] * plain + [3] * len(markup) + [4] * len(user_defined)
    keys = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges, **more}
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


@cache
def small(markup: tuple[str, ...] = (), *, user_defined: tuple[str, ...] = (), pre: str = "gpt-2") -> Tokenizer:
    """The tokenizer of :func:`small_metadata`, whose first and second markup tokens begin and end texts."""
    metadata = small_metadata(markup, user_defined=user_defined, pre=pre)
    if len(markup) > 1:
        first = metadata["tokenizer.ggml.tokens"].index(markup[0])
        metadata |= {"tokenizer.ggml.bos_token_id": first, "tokenizer.ggml.eos_token_id": first + 1}
    return Tokenizer(read_gguf(metadata))


def with_added(*added: AddedToken) -> Tokenizer:
    """A tokenizer of bytes and these tokens."""
    vocabulary = make_vocabulary(
        dict(BYTE_OF), [], added, FAMILIES["gpt-2"], bos_id=None, eos_id=None, more_eos_ids=(), adds_bos=None
    )
    return Tokenizer(vocabulary)


def folder(path: Path, metadata: Mapping[str, Any], **files: Any) -> Path:
    """A folder with the tokenizer of GGUF metadata as tokenizer.json, and ``files`` (name without .json) as JSON."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": id, "content": tokens[id], "special": kind == 3, **flags} for id, kind in enumerate(types) if kind != 1
    ]
    words = FAMILIES[metadata["tokenizer.ggml.pre"]]
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in words.patterns
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if words.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, last]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "vocab": {token: id for id, token in enumerate(tokens) if types[id] == 1},
            "merges": metadata["tokenizer.ggml.merges"],
            "ignore_merges": words.whole_words,
        },
    }
    path.mkdir(exist_ok=True)
    for name, value in {"tokenizer": content, "config": {"model_type": "llama"}, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path
