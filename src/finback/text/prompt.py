"""Prompts under construction: markup of ours beside text of users."""

from __future__ import annotations

from collections.abc import Sequence

from finback.text.added import Piece
from finback.text.markup import THINK

PROBE = ({"role": "user", "content": "?"},)  # the least conversation, to see how prompts end


class Prompt:
    """Pieces in order. Markup may hold control tokens; text is taken literally."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def markup(self, *texts: str) -> None:
        """Add what we wrote; a control token must lie within one of ``texts``."""
        self.pieces += [Piece(text, trusted=True) for text in texts if text]

    def text(self, text: str) -> None:
        """Add what somebody else wrote."""
        if text:
            self.pieces.append(Piece(text, trusted=False))


def opens_reasoning(pieces: Sequence[Piece]) -> bool:
    """Whether a prompt ends with the mark that opens reasoning, so that the answer continues it."""
    for piece in reversed(pieces):
        if piece.text.strip():
            return piece.trusted and piece.text.rstrip().endswith(THINK)
    return False
