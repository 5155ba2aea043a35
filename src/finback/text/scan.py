"""Finding markers in text that comes in pieces.

What may still become a marker is held back, and nothing else. Markers are plain strings, so finding them takes linear
time whatever the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Event = TypeVar("Event")


class Markers:
    """Strings to look for; where two begin at one place, the longer one counts."""

    def __init__(self, *texts: str) -> None:
        self._texts = tuple(sorted(texts, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self._texts)))
        self._longest = len(self._texts[0])

    def find(self, text: str, start: int) -> re.Match[str] | None:
        """The first marker from ``start`` on."""
        return self._pattern.search(text, start)

    def held(self, text: str, start: int) -> int:
        """Where the longest end of ``text`` begins that a marker could begin with; the text's length if none."""
        first = max(start, len(text) - self._longest + 1)
        return next((at for at in range(first, len(text)) if self._may_begin(text[at:])), len(text))

    def _may_begin(self, end: str) -> bool:
        return any(text.startswith(end) for text in self._texts)


class Scanner:
    """Text that has come and is not yet consumed."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0

    def feed(self, text: str) -> None:
        """More text has come."""
        self._text = self._text[self._at :] + text
        self._at = 0

    @property
    def left(self) -> int:
        """Characters that are not consumed."""
        return len(self._text) - self._at

    def take_until(self, markers: Markers) -> tuple[str, str | None]:
        """The text before the next marker and the marker; without one, the text that cannot be part of one."""
        start = self._at
        match = markers.find(self._text, start)
        if match is not None:
            self._at = match.end()
            return self._text[start : match.start()], match[0]
        self._at = markers.held(self._text, start)
        return self._text[start : self._at], None

    def take_spaces(self, spaces: str) -> str:
        """The characters of ``spaces`` that come next."""
        start = self._at
        while self._at < len(self._text) and self._text[self._at] in spaces:
            self._at += 1
        return self._text[start : self._at]

    def take_marker(self, markers: Markers) -> tuple[str | None, bool]:
        """The marker that comes next, or None and whether more text may still make one."""
        match = markers.find(self._text, self._at)
        if match is not None and match.start() == self._at:
            self._at = match.end()
            return match[0], True
        return None, markers.held(self._text, self._at) == self._at

    def take_all(self) -> str:
        """All the text that is left."""
        start, self._at = self._at, len(self._text)
        return self._text[start:]


class Machine(Generic[Event]):
    """Reads text step by step. A step takes what it can, may name another as the next one, and is asked again until it
    neither takes text nor hands over: then more text is needed.
    """

    def __init__(self, first_step: Callable[[], Iterable[Event]]) -> None:
        self._scanner = Scanner()
        self._step = first_step

    def push(self, text: str) -> Iterator[Event]:
        """What ``text`` makes known."""
        self._scanner.feed(text)
        before = None
        while (now := (self._step, self._scanner.left)) != before:
            before = now
            yield from self._step()
