"""Text from ids one at a time: whole characters, and together what decoding all at once gives."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finback.text.detokenizer import Detokenizer
from finback.text.tokenizer import BYTE_OF, Tokenizer
from tests.text.vocabularies import CASES, DEEPSEEK_MARKUP, published, small

# One byte of every kind that UTF-8 tells apart.
BYTES = [0x41, 0x80, 0xA0, 0xBF, 0xC0, 0xC3, 0xE0, 0xE2, 0xED, 0xF0, 0xF4, 0xFF]


def _pieces(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    detokenizer = Detokenizer(tokenizer, **options)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


def _byte_ids(data: list[int]) -> list[int]:
    order = list(BYTE_OF.values())
    return [order.index(byte) for byte in data]


def test_every_mixture_of_four_bytes() -> None:
    tokenizer = small()
    ids_of = dict(zip(BYTES, _byte_ids(BYTES), strict=True))
    for data in product(BYTES, repeat=4):
        ids = [ids_of[byte] for byte in data]
        expected = bytes(data).decode(errors="replace")
        assert "".join(_pieces(tokenizer, ids)) == tokenizer.decode(ids) == expected


@given(data=st.binary(max_size=40))
def test_any_bytes(data: bytes) -> None:
    ids = _byte_ids(list(data))
    assert "".join(_pieces(small(), ids)) == small().decode(ids) == data.decode(errors="replace")


@pytest.mark.parametrize("name", list(CASES))
def test_published_cases(name: str) -> None:
    for case in CASES[name]:
        assert "".join(_pieces(published(name), case["ids"])) == case["text"]


@given(ids=st.lists(st.integers(0, 102399), max_size=30))
def test_any_ids(ids: list[int]) -> None:
    tokenizer = published("deepseek-llm")
    assert "".join(_pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_comes_whole() -> None:
    tokenizer = small()
    assert _pieces(tokenizer, tokenizer.encode("a😀b")) == ["a", "", "", "", "😀", "b", ""]


def test_half_a_character_at_the_end() -> None:
    tokenizer = small()
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(id) for id in tokenizer.encode("😀")[:3]] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""
    assert detokenizer.push(tokenizer.encode("a")[0]) == "a"


def test_hidden_tokens_are_left_out() -> None:
    tokenizer = small(DEEPSEEK_MARKUP)
    ids = tokenizer.encode("a<｜User｜><think>b")
    assert "".join(_pieces(tokenizer, ids, skip_special=True)) == "a<think>b"
    assert "".join(_pieces(tokenizer, ids)) == "a<｜User｜><think>b"
