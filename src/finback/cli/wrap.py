"""Line breaks between words for text that streams into a terminal."""

from __future__ import annotations

from collections.abc import Callable

_LONG_WORD = 40
_FENCE = "```"


class WordWrap:
    """Puts line breaks where a word would cross the right edge. The word that is still growing is held back, so the
    result is the same however the text is cut into pieces. Lines inside code fences are left as they are.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        """``width``: asked anew for every word, since windows change."""
        self._width = width
        self._word = ""
        self._column = 0
        self._line_start = ""
        self._in_code = False

    def push(self, text: str) -> str:
        """What can be shown now that ``text`` has come."""
        return "".join(self._one(character) for character in text)

    def flush(self) -> str:
        """What was held back. The next text starts at the left edge."""
        last = self._place()
        self._column, self._line_start, self._in_code = 0, "", False
        return last

    def _one(self, character: str) -> str:
        if character == "\n":
            return self._end_line()
        if len(self._line_start) < len(_FENCE):
            self._line_start += character
        if character.isspace():
            return self._place() + self._space(character)
        self._word += character
        # A word without end is shown as it grows, and so is text that needs no spaces.
        ready = self._in_code or len(self._word) >= _LONG_WORD or ord(character) >= 0x2E80
        return self._place() if ready else ""

    def _end_line(self) -> str:
        shown = self._place() + "\n"
        if self._line_start == _FENCE:
            self._in_code = not self._in_code
        self._column, self._line_start = 0, ""
        return shown

    def _space(self, character: str) -> str:
        """A space at the right edge would only begin the next line."""
        if self._column >= self._width() and not self._in_code:
            return ""
        self._column += 1
        return character

    def _place(self) -> str:
        """The held word, on the next line if it does not fit on this one."""
        from rich.cells import cell_len

        word, self._word = self._word, ""
        size = cell_len(word)
        if not self._in_code and self._column > 0 and self._column + size > self._width():
            self._column = size
            return "\n" + word
        self._column += size
        return word
