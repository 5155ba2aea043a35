"""What a tokenizer's files say, checked: tokens, merges, added tokens, and which of them begin and end texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from finback.errors import TokenizerError
from finback.text.markup import END_OF_TURN, is_padding, looks_like_markup
from finback.text.pretokenizers import Words

MAX_TOKENS = 1 << 21  # also the largest id

Merge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in the text before anything else.

    ``control``: markup, which only trusted text may contain. The others (such as a plain ``ü``, which DeepSeek's byte
    pairs cannot spell) are found everywhere. ``strips_left`` and ``strips_right``: it swallows spaces beside it.
    """

    id: int
    text: str
    control: bool
    strips_left: bool = False
    strips_right: bool = False
    whole_word: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """One tokenizer. Invariant: ids are below ``size``; no text is both in ``tokens`` and a control token."""

    tokens: dict[str, int]  # in the byte alphabet
    merges: Sequence[Merge]
    added: tuple[AddedToken, ...]
    words: Words
    bos_id: int | None
    eos_id: int | None  # what templates call the end; ``eos_ids`` are all that end an answer
    eos_ids: frozenset[int]
    adds_bos: bool
    size: int  # one more than the largest id


def make_vocabulary(
    tokens: dict[str, int],
    merges: Sequence[Merge],
    added: Iterable[AddedToken],
    words: Words,
    *,
    bos_id: int | None,
    eos_id: int | None,
    more_eos_ids: Iterable[int],
    adds_bos: bool | None,
) -> Vocabulary:
    """Check the parts against each other and put them together."""
    every = tuple(added)
    size = _size(tokens.values(), every)
    added = _classified(every)
    for token in added:
        if token.control:
            tokens.pop(token.text, None)
    ends = {*more_eos_ids, *(token.id for token in added if token.control and token.text in END_OF_TURN)}
    if adds_bos is None:
        adds_bos = words.adds_bos and bos_id is not None
    if adds_bos and bos_id is None:
        raise TokenizerError("the tokenizer adds a token at the beginning of texts but does not say which")
    if eos_id is not None:
        ends.add(eos_id)
    if not all(0 <= id < size for id in (*ends, 0 if bos_id is None else bos_id)):
        raise TokenizerError(f"the tokenizer has {size} tokens, but names one as first or last that is not among them")
    return Vocabulary(tokens, merges, added, words, bos_id, eos_id, frozenset(ends), adds_bos, size)


def _classified(added: Iterable[AddedToken]) -> tuple[AddedToken, ...]:
    """Without padding and repetitions; what looks like markup is control. One character never is."""
    kept: dict[str, AddedToken] = {}
    for token in added:
        if not token.text or any("\ud800" <= character <= "\udfff" for character in token.text):
            raise TokenizerError(f"the added token {token.id} is not text")
        control = len(token.text) > 1 and (token.control or looks_like_markup(token.text))
        if not is_padding(token.text):
            kept.setdefault(token.text, replace(token, control=control))
    return tuple(kept.values())


def _size(ids: Iterable[int], added: Sequence[AddedToken]) -> int:
    every = [*ids, *(token.id for token in added)]
    if not every:
        raise TokenizerError("the tokenizer has no tokens")
    if min(every) < 0 or max(every) >= MAX_TOKENS:
        raise TokenizerError(f"the tokenizer's ids go from {min(every)} to {max(every)}, beyond 0 to {MAX_TOKENS - 1}")
    return max(every) + 1


def split_merges(lines: Sequence[str]) -> list[Merge]:
    """Merges from lines of two symbols with one space between."""
    return checked_merges([tuple(line.split(" ")) for line in lines])


def checked_merges(merges: Sequence[Sequence[str]]) -> list[Merge]:
    """The merges, if each of them joins two symbols."""
    if not set(map(len, merges)) <= {2}:
        raise TokenizerError("a merge of the tokenizer does not join two symbols")
    return cast("list[Merge]", merges)
