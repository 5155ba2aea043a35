"""The vocabulary in a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finback.errors import TokenizerError, UnsupportedModel
from finback.text.pretokenizers import words_of_gguf
from finback.text.vocabulary import AddedToken, Vocabulary, make_vocabulary, split_merges

_PREFIX = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
NO_VOCABULARY = (None, "none", "no_vocab")  # how converters say that there is no tokenizer
_MORE_ENDS = ("eot_token_id", "eom_token_id")


def read_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read and check the ``tokenizer.ggml`` keys."""
    model = _optional(metadata, "model", str)
    if model != "gpt2":
        raise UnsupportedModel(
            f"the tokenizer is of the kind {str(model)[:80]!r}; byte-pair encoding (gpt2) is supported"
        )
    words = words_of_gguf(_optional(metadata, "pre", str) or "default")
    texts = _strings(metadata, "tokens")
    kinds = _kinds(metadata, len(texts))
    return make_vocabulary(
        _plain(texts, kinds),
        split_merges(_strings(metadata, "merges")),
        _added(texts, kinds),
        words,
        bos_id=_optional(metadata, "bos_token_id", int),
        eos_id=_optional(metadata, "eos_token_id", int),
        more_eos_ids=[id for key in _MORE_ENDS if (id := _optional(metadata, key, int)) is not None],
        adds_bos=_optional(metadata, "add_bos_token", bool),
    )


def _plain(texts: list[str], kinds: list[int]) -> dict[str, int]:
    """Tokens that byte pairs may merge into: nearly all, so the others are taken out again."""
    tokens = dict(zip(texts, range(len(texts)), strict=True))
    for id in _unusual(kinds):
        if kinds[id] != _BYTE:
            tokens.pop(texts[id], None)
    return tokens


def _unusual(kinds: list[int]) -> list[int]:
    """Ids of the few tokens that are not normal."""
    return [id for id, kind in enumerate(kinds) if kind != _NORMAL]


def _added(texts: list[str], kinds: list[int]) -> Iterator[AddedToken]:
    """Tokens that are found in the text; old converters called some of DeepSeek's markup normal."""
    marked = [id for id, text in enumerate(texts) if "｜" in text and kinds[id] == _NORMAL]
    for id in sorted([*_unusual(kinds), *marked]):
        if kinds[id] in (_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED):
            yield AddedToken(id, texts[id], control=kinds[id] != _USER_DEFINED)


def _optional(metadata: Mapping[str, Any], key: str, kind: type) -> Any:
    value = metadata.get(_PREFIX + key)
    if value is not None and type(value) is not kind:
        raise TokenizerError(f"{_PREFIX}{key} must be {kind.__name__}, not {type(value).__name__}")
    return value


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(_PREFIX + key)
    if not isinstance(value, list) or not set(map(type, value)) <= {str}:
        raise TokenizerError(f"{_PREFIX}{key} must be a list of strings")
    return value


def _kinds(metadata: Mapping[str, Any], count: int) -> list[int]:
    value = metadata.get(_PREFIX + "token_type")
    if value is None:
        return [_NORMAL] * count
    if not isinstance(value, list) or not set(map(type, value)) <= {int} or len(value) != count:
        raise TokenizerError(f"{_PREFIX}token_type must be a list of {count} numbers, one for each token")
    return value
