"""Guessing ahead: answers repeat what stands before them (code, quotations, lists), so look there for the next tokens.

A guess is what followed the last three tokens when they stood there before, over and over if need be. Guessed tokens
are computed in the same step as the last chosen one, and each is kept only if the token that is chosen in its place is
the same: an answer is the same token for token, with or without, at any temperature, because chance is a function of
the position. Whether guessing pays is measured: how often the guesses of this very request would have been right (also
while none are computed), and what more rows cost in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

MATCH = 3  # tokens that must have stood there before
FIRST_CHANCE = 0.5  # before anything is known
SMOOTHING = 0.15  # weight of the newest outcome


class Drafter:
    """Guesses the tokens after one growing sequence. Invariant: what is indexed ends before the last token."""

    def __init__(self) -> None:
        self._after: dict[int, int] = {}  # tokens, as one number -> where the latest ones stand that followed them
        self._indexed = MATCH  # next sequence length whose last tokens are to be indexed
        self._guess: Sequence[int] = ()
        self._guessed_at = 0
        self.chance = FIRST_CHANCE  # that a guessed token is right if all before it are

    def guess(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        """Up to ``most`` tokens that may follow ``tokens``. Judges the guess before by what has followed it."""
        self._judge(tokens)
        for end in range(self._indexed, len(tokens)):
            self._after[_as_number(tokens, end)] = end
        self._indexed = max(self._indexed, len(tokens))
        found = self._after.get(_as_number(tokens, len(tokens)))
        self._guess = () if found is None else _continued(tokens, found, most)
        self._guessed_at = len(tokens)
        return self._guess

    def _judge(self, tokens: Sequence[int]) -> None:
        for guessed, chosen in zip(self._guess, tokens[self._guessed_at :], strict=False):
            self.chance += SMOOTHING * ((guessed == chosen) - self.chance)
            if guessed != chosen:
                break


def _as_number(tokens: Sequence[int], end: int) -> int:
    """The tokens before ``end`` in one number, which takes a third of the memory of a tuple of them."""
    number = 0
    for token in tokens[max(end - MATCH, 0) : end]:
        number = number << 32 | token
    return number


def _continued(tokens: Sequence[int], first: int, count: int) -> list[int]:
    """``count`` tokens from index ``first`` on; the end is followed by ``first`` again, as in a loop."""
    loop = len(tokens) - first
    return [tokens[first + i % loop] for i in range(count)]


def worth_drafting(chance: float, most: int, answers: int, rows: int, seconds: Callable[[int], float]) -> int:
    """How many guessed tokens gain most time when they are added to a step of ``rows`` rows for ``answers`` answers.

    ``seconds(n)``: what a step of ``n`` rows takes. A token is worth what it takes without guessing.
    """
    token_s, alone = seconds(answers) / answers, seconds(rows)
    best, most_gained, expected = 0, 0.0, 0.0
    for count in range(1, most + 1):
        expected += chance**count
        gained = expected * token_s - (seconds(rows + count) - alone)
        if gained > most_gained:
            best, most_gained = count, gained
    return best
