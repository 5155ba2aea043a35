"""Separates a model's reasoning from its answer.

Line breaks at either end of the reasoning and before the answer belong to the markup and are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

from finback.text.events import Content, Reasoning
from finback.text.markup import END_THINK, THINK
from finback.text.scan import Machine, Markers

_SPACES = " \t\r\n"
_BREAKS = "\r\n"
_OPEN, _CLOSE = Markers(THINK), Markers(END_THINK)

Texts = Iterator[Reasoning | Content]


class ReasoningSplitter(Machine[Reasoning | Content]):
    """Reasoning first, if any, then content. ``opened``: the prompt ended with the mark that opens reasoning."""

    def __init__(self, *, opened: bool) -> None:
        super().__init__(self._reasoning_begins if opened else self._begins)
        self._held = ""  # spaces whose meaning depends on what follows

    def flush(self) -> Texts:
        """What was held back, when no text follows."""
        rest, self._held = self._held + self._scanner.take_all(), ""
        if rest:
            yield Reasoning(rest) if self._step == self._reasoning else Content(rest)

    def _begins(self) -> Texts:
        self._held += self._scanner.take_spaces(_SPACES)
        marker, possible = self._scanner.take_marker(_OPEN)
        if marker is not None:
            self._held = ""
            self._step = self._reasoning_begins
        elif not possible:
            self._step = self._content
        return iter(())

    def _reasoning_begins(self) -> Texts:
        self._scanner.take_spaces(_BREAKS)
        if self._scanner.left:
            self._step = self._reasoning
        return iter(())

    def _reasoning(self) -> Texts:
        text, marker = self._scanner.take_until(_CLOSE)
        text = self._held + text
        kept = text.rstrip(_BREAKS)
        self._held = text[len(kept) :] if marker is None else ""
        if marker is not None:
            self._step = self._content_begins
        if kept:
            yield Reasoning(kept)

    def _content_begins(self) -> Texts:
        self._scanner.take_spaces(_BREAKS)
        if self._scanner.left:
            self._step = self._content
        return iter(())

    def _content(self) -> Texts:
        text, self._held = self._held + self._scanner.take_all(), ""
        if text:
            yield Content(text)
