"""Stop strings: what is shown, what is held back, and that the cut does not depend on the tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finback.engine.answer import Answer, StopStrings
from tests.conftest import ByteTokenizer


def run(stops: list[str], chunks: list[str]) -> tuple[list[str], str | None]:
    """What each chunk shows, and the stop string that ended it."""
    watcher, shown = StopStrings(stops), []
    for chunk in chunks:
        shown.append(watcher.push(chunk))
        if watcher.matched:
            return shown, watcher.matched
    return [*shown, watcher.flush()], None


def test_text_that_may_begin_a_stop_is_held_back() -> None:
    assert run(["<end>"], ["ab<", "en", "d>c"]) == (["ab", "", ""], "<end>")
    assert run(["<end>"], ["ab<", "en", "x>c"]) == (["ab", "", "<enx>c", ""], None)
    assert run(["<end>"], ["ab<", "<en"]) == (["ab", "<", "<en"], None)


def test_overlapping_beginnings() -> None:
    assert run(["aab"], ["aaa", "b"]) == (["a", ""], "aab")
    assert run(["abab"], ["aba", "abab"]) == (["", "aba"], "abab")


def test_the_stop_that_is_complete_first_wins() -> None:
    assert run(["bc", "abcd"], ["abcd"]) == (["a"], "bc")
    assert run(["abc", "c"], ["xabc"]) == (["x"], "abc")  # complete together: the longer one


def test_nothing_after_the_stop_is_shown() -> None:
    assert run(["\n"], ["one\ntwo\nthree"]) == (["one"], "\n")


def test_without_stops_text_passes_through() -> None:
    assert run([], ["a", "b"]) == (["a", "b", ""], None)


def expected(stops: list[str], text: str) -> str:
    """By definition: read character by character until some stop string is complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    chunks=st.lists(st.text("ab", max_size=4), max_size=8),
)
def test_the_cut_does_not_depend_on_the_chunks(stops: list[str], chunks: list[str]) -> None:
    shown, _ = run(stops, chunks)
    assert "".join(shown) == expected(stops, "".join(chunks))


def test_shown_text_is_never_taken_back() -> None:
    shown, _ = run(["abc"], list("abababc"))
    assert "".join(shown) == "abab"


@pytest.fixture
def answer() -> Answer:
    return Answer(ByteTokenizer(), ["stop"])


def test_characters_are_whole(answer: Answer) -> None:
    euro = "€".encode()
    assert [answer.push(byte) for byte in euro] == ["", "", "€"]


def test_an_incomplete_character_at_the_end_is_replaced(answer: Answer) -> None:
    assert answer.push("€".encode()[0]) == ""
    assert answer.flush() == "\ufffd"


def test_held_text_comes_at_the_end(answer: Answer) -> None:
    assert "".join(answer.push(byte) for byte in b"a sto") == "a "
    assert answer.flush() == "sto"


def test_a_stopped_answer_has_nothing_left(answer: Answer) -> None:
    assert "".join(answer.push(byte) for byte in b"a stop") == "a "
    assert answer.stopped
    assert answer.flush() == ""
