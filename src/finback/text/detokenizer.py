"""From token ids to text, one id at a time, in whole characters."""

from __future__ import annotations

import codecs

from finback.text.tokenizer import Tokenizer


class Detokenizer:
    """Text of ids as they come. Invariant: all pieces joined are what ``decode`` makes of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        """``skip_special``: as in ``Tokenizer.decode``."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The characters that ``id`` completes."""
        if self._skip_special and self._tokenizer.is_hidden(id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """What is left when no id follows: U+FFFD for half a character. Afterwards a new text can begin."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
