"""From an answer's tokens to its text: whole characters only, and nothing of a stop string.

Text that may be the beginning of a stop string is held back until the next tokens decide. The stop string
that is complete first ends the answer (of two that end together, the longer one), so that the cut does not
depend on how the text was divided into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from finback.text.detokenizer import Detokenizer
from finback.text.tokenizer import Tokenizer


class StopStrings:
    """Cuts a stream of text before the first stop string. Invariant: what is held may begin a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that can be shown now; :attr:`matched` is set when a stop string is complete."""
        if not self._stops:
            return text
        text = self._held + text
        self._held = ""
        cut = self._find(text)
        if cut is not None:
            return text[:cut]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """The text that was held back, when the answer has ended without a stop string."""
        text, self._held = self._held, ""
        return text

    def _find(self, text: str) -> int | None:
        """Where the stop string starts that is complete first."""
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if not found:
            return None
        _, cut, self.matched = min(found)
        return cut


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)


class Answer:
    """The text of one answer as it grows."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self._stops.matched is not None

    def push(self, token: int) -> str:
        """The text that ``token`` makes known."""
        return self._stops.push(self._detokenizer.push(token))

    def flush(self) -> str:
        """The rest, once no token follows."""
        if self.stopped:
            return ""
        text = self._stops.push(self._detokenizer.flush())
        return text if self.stopped else text + self._stops.flush()
