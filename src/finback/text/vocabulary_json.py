"""The vocabulary in a folder's tokenizer.json, with what tokenizer_config.json and generation_config.json add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from finback.errors import TokenizerError, UnsupportedModel
from finback.text.pretokenizers import Words, words_of_json
from finback.text.vocabulary import AddedToken, Merge, Vocabulary, checked_merges, make_vocabulary
from finback.weights.checkpoint import Checkpoint

_T = TypeVar("_T")


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class _File(msgspec.Struct):
    model: msgspec.Raw
    added_tokens: list[_Added] = msgspec.field(default_factory=list)
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


class _Kind(msgspec.Struct):
    type: str = "BPE"  # old files do not say it


class _Model(msgspec.Struct):
    vocab: dict[str, int]
    merges: list[str | Merge]
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


def read_json(checkpoint: Checkpoint) -> Vocabulary:
    """Read and check the tokenizer of a folder."""
    file = _decode(checkpoint.side_text("tokenizer.json"), _File)
    model = _model(file.model)
    config = checkpoint.side_json("tokenizer_config.json")
    bos, eos = _text(config.get("bos_token")), _text(config.get("eos_token"))
    added = {token.content: token.id for token in file.added_tokens}
    ends = list(_ends(checkpoint))
    return make_vocabulary(
        model.vocab,
        _merges(model.merges),
        (_added(token) for token in file.added_tokens),
        _words(file, model),
        bos_id=_number(checkpoint.hf_config.get("bos_token_id"))
        if bos is None
        else added.get(bos, model.vocab.get(bos)),
        eos_id=(ends[0] if ends else None) if eos is None else added.get(eos, model.vocab.get(eos)),
        more_eos_ids=ends,
        adds_bos=_adds_bos(config, file.post_processor, bos),
    )


def _decode(data: str | msgspec.Raw, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise TokenizerError(f"tokenizer.json cannot be used: {str(error)[:200]}") from None


def _model(data: msgspec.Raw) -> _Model:
    kind = _decode(data, _Kind).type
    if kind != "BPE":
        raise UnsupportedModel(f"the tokenizer is of the kind {kind[:80]!r}; byte-pair encoding (BPE) is supported")
    model = _decode(data, _Model)
    if model.byte_fallback or model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        raise UnsupportedModel("the tokenizer's byte-pair encoding does not work on bytes, or drops merges at random")
    return model


def _merges(merges: list[str | Merge]) -> list[Merge]:
    return checked_merges([tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in merges])


def _words(file: _File, model: _Model) -> Words:
    words = words_of_json(file.pre_tokenizer)
    return replace(words, nfc=_composes(file.normalizer), whole_words=model.ignore_merges)


def _composes(normalizer: Mapping[str, Any] | None) -> bool:
    if normalizer is None:
        return False
    if normalizer.get("type") == "Sequence":
        steps = normalizer.get("normalizers")
        if isinstance(steps, list) and all(isinstance(step, dict) for step in steps):
            composed = [_composes(step) for step in steps]
            return any(composed)
    if normalizer.get("type") != "NFC":
        raise UnsupportedModel(f"tokenizer.json: the normalizer {str(normalizer.get('type'))[:80]!r} is not supported")
    return True


def _added(token: _Added) -> AddedToken:
    return AddedToken(
        token.id,
        token.content,
        control=token.special,
        strips_left=token.lstrip,
        strips_right=token.rstrip,
        whole_word=token.single_word,
    )


def _text(value: object) -> str | None:
    """A token's text: as it stands, or in an object that describes the token."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if type(value) is int else None


def _ends(checkpoint: Checkpoint) -> Iterator[int]:
    for config in (checkpoint.side_json("generation_config.json"), checkpoint.hf_config):
        value = config.get("eos_token_id")
        for id in value if isinstance(value, list) else [value]:
            if type(id) is int:
                yield id


def _adds_bos(config: Mapping[str, Any], post_processor: Mapping[str, Any] | None, bos: str | None) -> bool:
    """What the configuration says; if it is silent, whether the post-processor puts the token before the text."""
    stated = config.get("add_bos_token")
    if isinstance(stated, bool):
        return stated and bos is not None
    return bos is not None and any(bos == token for token in _before_text(post_processor or {}))


def _before_text(processor: Mapping[str, Any]) -> Iterable[str]:
    if processor.get("type") == "Sequence":
        steps = [step for step in processor.get("processors") or () if isinstance(step, dict)]
        return [token for step in steps for token in _before_text(step)]
    found: list[str] = []
    single = processor.get("single")
    for item in single if isinstance(single, list) else ():
        if not isinstance(item, dict) or "SpecialToken" not in item:
            break
        token = item["SpecialToken"]
        found.append(str(token.get("id")) if isinstance(token, dict) else "")
    return found
