"""Added tokens: the longest at each place, from left to right, with their manners about spaces and words."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from finback.text.added import AddedTokens, Piece
from finback.text.vocabulary import AddedToken
from tests.text.vocabularies import with_added


def _found(tokens: list[str], text: str) -> list[str]:
    added = AddedTokens([AddedToken(id, token, control=False) for id, token in enumerate(tokens)])
    return [text[match.start : match.stop] for match in added.find(text, [Piece(text, True)])]


def test_the_longest_token_counts() -> None:
    assert _found(["<a", "<ab>", "b"], "x<ab><a<ab") == ["<ab>", "<a", "<a", "b"]


def test_no_tokens() -> None:
    assert _found([], "abc") == []


def test_special_characters_are_plain_here() -> None:
    assert _found(["^", "]", "-", "\\", "[x]"], "a-]^\\[x][") == ["-", "]", "^", "\\", "[x]"]


@given(text=st.text("ab<>", max_size=30))
def test_as_a_plain_search_from_left_to_right(text: str) -> None:
    tokens = ["a", "ab", "<a>", "<a>b", "<", "<<"]
    expected, at = [], 0
    while at < len(text):
        token = max((token for token in tokens if text.startswith(token, at)), key=len, default="")
        if token:
            expected.append(token)
        at += len(token) or 1
    assert _found(tokens, text) == expected


def test_spaces_that_a_token_swallows() -> None:
    tokenizer = with_added(
        AddedToken(300, "<l>", control=True, strips_left=True), AddedToken(301, "<r>", control=True, strips_right=True)
    )
    assert tokenizer.encode("a \n<l> b") == [*tokenizer.encode("a"), 300, *tokenizer.encode(" b")]
    assert tokenizer.encode("a <r> \t b") == [*tokenizer.encode("a "), 301, *tokenizer.encode("b")]
    assert tokenizer.encode("<r>  <l>") == [301, 300]


def test_whole_words_only() -> None:
    tokenizer = with_added(AddedToken(300, "cat", control=False, whole_word=True))
    assert tokenizer.encode("cat") == [300]
    assert tokenizer.encode("(cat)")[1] == 300
    for text in ("cats", "bobcat", "_cat"):
        assert 300 not in tokenizer.encode(text)


def test_one_character_is_never_control() -> None:
    tokenizer = with_added(AddedToken(300, "ü", control=True))
    assert tokenizer.encode("ü", special=False) == [300]


def test_many_tokens_and_many_beginnings_take_linear_time() -> None:
    tokens = [f"<{'x' * (n % 50)}{n}>" for n in range(3000)]
    added = AddedTokens([AddedToken(id, token, control=True) for id, token in enumerate(tokens)])
    text = "<x" * 50_000
    started = time.process_time()
    assert list(added.find(text, [Piece(text, True)])) == []
    pieces = [Piece("<", True)] * 100_000
    assert list(added.find("<" * 100_000, pieces)) == []
    assert time.process_time() - started < 3
