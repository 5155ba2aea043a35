"""Finds added tokens in text: the longest at each place, from left to right, control tokens only where they may be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from finback.text.vocabulary import AddedToken


class Piece(NamedTuple):
    """A part of a prompt. Control tokens are found only inside one trusted piece; text of users is never trusted."""

    text: str
    trusted: bool


class Match(NamedTuple):
    """A token and the characters that it stands for."""

    start: int
    stop: int
    id: int


class AddedTokens:
    """A set of added tokens, ready to be found."""

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        self._by_text = {token.text: token for token in tokens}
        lengths: dict[str, set[int]] = {}
        for token in tokens:
            lengths.setdefault(token.text[:2], set()).add(len(token.text))
        # By first two characters, longest first.
        self._lengths = {beginning: tuple(sorted(found, reverse=True)) for beginning, found in lengths.items()}
        first = "".join(re.escape(character) for character in sorted({token.text[0] for token in tokens}))
        self._candidates = re.compile(f"[{first}]" if first else "(?!)")

    def find(self, text: str, pieces: Iterable[Piece]) -> Iterator[Match]:
        """All tokens in ``text``, which is the text of the pieces joined. Time is linear in the text."""
        ends = iter(_ends(pieces))
        piece_stop, trusted = 0, False
        cursor = 0
        for candidate in self._candidates.finditer(text):
            start = candidate.start()
            if start < cursor:
                continue
            while start >= piece_stop:
                piece_stop, trusted = next(ends)
            token = self._at(text, start, control_until=piece_stop if trusted else start)
            if token is not None:
                match = _with_spaces(text, start, cursor, token)
                cursor = match.stop
                yield match

    def _at(self, text: str, start: int, *, control_until: int) -> AddedToken | None:
        """The longest token that begins here; a control token must also end before ``control_until``."""
        for beginning in (text[start : start + 2], text[start]):
            for length in self._lengths.get(beginning, ()):
                token = self._by_text.get(text[start : start + length])
                if token is not None and self._may_be(token, text, start, control_until):
                    return token
        return None

    def _may_be(self, token: AddedToken, text: str, start: int, control_until: int) -> bool:
        stop = start + len(token.text)
        if token.control and stop > control_until:
            return False
        return not token.whole_word or not (_in_word(text, start - 1) or _in_word(text, stop))


def _ends(pieces: Iterable[Piece]) -> Iterator[tuple[int, bool]]:
    stop = 0
    for piece in pieces:
        stop += len(piece.text)
        yield stop, piece.trusted


def _in_word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def _with_spaces(text: str, start: int, cursor: int, token: AddedToken) -> Match:
    stop = start + len(token.text)
    while token.strips_left and start > cursor and text[start - 1].isspace():
        start -= 1
    while token.strips_right and stop < len(text) and text[stop].isspace():
        stop += 1
    return Match(start, stop, token.id)
