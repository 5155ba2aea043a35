"""From text to token ids and back.

Byte pairs are merged by the ``tokenizers`` library, which is given only stretches of plain text. Added tokens are found
here, because who wrote a text decides which of them it may contain: see :class:`Piece`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import filterfalse
from types import MappingProxyType
from typing import TYPE_CHECKING

from finback.errors import InvalidRequest, TokenizerError
from finback.text.added import AddedTokens, Piece
from finback.text.markup import ANSWER_MARKUP
from finback.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    import tokenizers

__all__ = ["Piece", "Tokenizer"]


def _byte_alphabet() -> Mapping[str, int]:
    """The character that stands for each byte in the files: itself if it prints, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return MappingProxyType({chr(byte): byte for byte in printable} | shifted)


BYTE_OF = _byte_alphabet()


class Tokenizer:
    """A vocabulary at work. It does not change, so threads may share it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocab_size = vocabulary.size
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.eos_ids = vocabulary.eos_ids
        self.adds_bos = vocabulary.adds_bos
        self.control_texts = frozenset(token.text for token in vocabulary.added if token.control)
        self._added = AddedTokens(vocabulary.added)
        self._words = _words(vocabulary)
        self._spelled: list[str | bytes | None] = _spellings(vocabulary)
        self._id_of = {token.text: token.id for token in vocabulary.added}
        shown = {self._id_of.get(text) for text in ANSWER_MARKUP}
        self._hidden = frozenset(token.id for token in vocabulary.added if token.control) - shown

    def encode(self, text: str, *, bos: bool = False, special: bool = True) -> list[int]:
        """Token ids of ``text``. ``bos``: begin with the token that begins texts. ``special``: find control tokens."""
        return self.encode_pieces([Piece(text, special)], bos=bos)

    def encode_pieces(self, pieces: Iterable[Piece], *, bos: bool = False) -> list[int]:
        """Token ids of the pieces' joined text, in which only trusted pieces may contain control tokens."""
        pieces = list(pieces)
        text = "".join(piece.text for piece in pieces)
        _check_characters(text)
        ids = [self.bos_id] if bos and self.bos_id is not None else []
        cursor = 0
        for match in self._added.find(text, pieces):
            ids += self._plain(text[cursor : match.start])
            ids.append(match.id)
            cursor = match.stop
        return ids + self._plain(text[cursor:])

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD. ``skip_special``: leave control tokens out, except
        those that mark reasoning and tool calls.
        """
        shown = (id for id in ids if id not in self._hidden) if skip_special else ids
        return b"".join(map(self.token_bytes, shown)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """What a token stands for; nothing if the model's head has a place for it but the vocabulary has not."""
        if id < 0:
            raise InvalidRequest(f"{id} is no token id: ids are not negative")
        spelled = self._spelled[id] if id < self.vocab_size else None
        if isinstance(spelled, str):
            spelled = self._spelled[id] = _to_bytes(spelled)
        return spelled or b""

    def text_of(self, id: int | None) -> str:
        """How a token is spelled; nothing for None."""
        return "" if id is None else self.decode([id])

    def token_id(self, text: str) -> int | None:
        """The id of an added token."""
        return self._id_of.get(text)

    def is_hidden(self, id: int) -> bool:
        """Whether ``skip_special`` leaves the token out."""
        return id in self._hidden

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._words.encode(text, add_special_tokens=False).ids if text else []
        return ids


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the text holds half of a surrogate pair, which is no character") from None


def _words(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The part of the work that the library does: words, and byte pairs within them."""
    import tokenizers
    from tokenizers import models, normalizers

    words = vocabulary.words
    _check_merges(vocabulary)
    try:
        model = models.BPE(vocab=vocabulary.tokens, merges=vocabulary.merges, ignore_merges=words.whole_words)
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"the tokenizer's merges cannot be used: {str(error)[:200]}") from None
    found = tokenizers.Tokenizer(model)
    if words.nfc:
        found.normalizer = normalizers.NFC()
    found.pre_tokenizer = words.build()
    return found


def _check_merges(vocabulary: Vocabulary) -> None:
    """Every merge must make a token: the library panics, past all handlers, where the result is longer than any."""
    made = map("".join, vocabulary.merges)
    lost = next(filterfalse(vocabulary.tokens.__contains__, made), None)
    if lost is not None:
        raise TokenizerError(f"the tokenizer's merges cannot be used: they make {lost[:80]!r}, which is not a token")


def _spellings(vocabulary: Vocabulary) -> list[str | bytes | None]:
    """By id: an added token's bytes, another token's text (turned into bytes when first asked for), or None."""
    spelled: list[str | bytes | None] = [None] * vocabulary.size
    for text, id in vocabulary.tokens.items():
        spelled[id] = text
    for token in vocabulary.added:
        spelled[token.id] = token.text.encode()
    return spelled


def _to_bytes(text: str) -> bytes:
    try:
        return bytes([BYTE_OF[character] for character in text])
    except KeyError:
        return text.encode()
