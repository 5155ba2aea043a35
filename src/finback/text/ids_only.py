"""A model whose files carry no tokenizer: it is asked with token ids, and answers with token ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from finback.errors import InvalidRequest
from finback.text.added import Piece
from finback.text.pretokenizers import words_of_gguf
from finback.text.tokenizer import Tokenizer
from finback.text.vocabulary import Vocabulary


class IdsOnly(Tokenizer):
    """A vocabulary without a single text: decoding gives nothing, encoding is refused."""

    def __init__(self) -> None:
        nothing = Vocabulary({}, (), (), words_of_gguf("default"), None, None, frozenset(), adds_bos=False, size=0)
        super().__init__(nothing)

    def encode_pieces(self, pieces: Iterable[Piece], *, bos: bool = False) -> NoReturn:
        """Always InvalidRequest."""
        raise InvalidRequest(
            "this model's files carry no tokenizer, so it takes token ids, not text",
            parameter="prompt",
            hint="copy tokenizer.json into the folder from where the model is published",
        )
