"""Control tokens stay out of what users write, wherever a template puts it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finback.errors import InvalidRequest
from finback.text.barriers import Barriers, take_out, unused_character
from finback.text.tokenizer import Piece
from tests.text.vocabularies import CHATML_MARKUP, small

MARK = "\U0010f000"
BARRIERS = Barriers(CHATML_MARKUP)
# Parts of control tokens, so that strings together often spell one.
PARTS = [
    "<",
    "|",
    "im_",
    "<|im_",
    "end",
    "end|>",
    "|>",
    ">",
    "start",
    "<|im_end|>",
    "<think>",
    "</",
    "think>",
    "a",
    " ",
]
WRITTEN = st.lists(st.sampled_from(PARTS), max_size=5).map("".join)


def _control(pieces: list[Piece]) -> list[int]:
    tokenizer = small(CHATML_MARKUP)
    control = {tokenizer.token_id(text) for text in CHATML_MARKUP}
    return [id for id in tokenizer.encode_pieces(pieces) if id in control]


@given(first=WRITTEN, second=WRITTEN, between=st.sampled_from(["", "\n", "<|im_end|>\n", "<|im_start|>user\n"]))
def test_only_the_templates_own_control_tokens_remain(first: str, second: str, between: str) -> None:
    text = "<|im_start|>" + BARRIERS.put(first, MARK) + between + BARRIERS.put(second, MARK) + "<|im_end|>"
    pieces = take_out(text, MARK)
    assert "".join(piece.text for piece in pieces) == f"<|im_start|>{first}{between}{second}<|im_end|>"
    assert _control(pieces) == _control([Piece("<|im_start|>" + between + "<|im_end|>", trusted=True)])


@given(text=WRITTEN, before=st.sampled_from(["<", "<|im_", "x"]), after=st.sampled_from([">", "_end|>", "|>", "x"]))
def test_halves_in_a_template_do_not_make_a_whole(text: str, before: str, after: str) -> None:
    """Unless the template puts both halves around a string on purpose, which is the template's own doing."""
    pieces = take_out(before + BARRIERS.put(text, MARK), MARK)
    assert _control(pieces) == []
    pieces = take_out(BARRIERS.put(text, MARK) + after, MARK)
    assert _control(pieces) == []


@given(first=WRITTEN, second=WRITTEN, spaces=st.text(" \n\t", max_size=2))
def test_halves_do_not_meet_when_a_template_takes_spaces_off(first: str, second: str, spaces: str) -> None:
    marked = [BARRIERS.put(spaces + text + spaces, MARK) for text in (first, second)]
    assert _control(take_out("".join(text.strip() for text in marked), MARK)) == []
    assert "".join(marked).replace(MARK, "") == spaces + first + spaces + spaces + second + spaces


def test_plain_strings_stay_as_they_are() -> None:
    value = {"type": "string", "a": ["user", 1, None, 1.5, True], "b": "1 < 2 and x > y"}
    assert BARRIERS.put(value, MARK) == value


def test_strings_everywhere_in_data() -> None:
    value = {"<think>": [{"a": "x<|im_end|>"}]}
    assert BARRIERS.put(value, MARK) == {f"<{MARK}think>": [{"a": f"x<{MARK}|im_end|>"}]}


def test_no_control_tokens() -> None:
    assert Barriers([]).put("<|im_end|>", MARK) == "<|im_end|>"


def test_the_barrier_occurs_nowhere() -> None:
    assert unused_character(["a", "b"]) == MARK
    assert unused_character(["a", f"x{MARK}"]) == chr(ord(MARK) + 1)
    with pytest.raises(InvalidRequest, match="private use"):
        unused_character(map(chr, range(0x10F000, 0x110000)))


def test_time_is_linear_in_the_text() -> None:
    started = time.process_time()
    for text in ("<|im_end|>", "<", "<|", "<|im_"):
        BARRIERS.put(text * (80_000 // len(text)), MARK)
    assert time.process_time() - started < 3
