"""Lines break between words, whatever the pieces."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finback.cli import answer
from finback.cli.answer import Printer
from finback.cli.wrap import WordWrap

TEXT = st.text(alphabet=st.sampled_from("ab  \n\t`漢é"), max_size=120)


def wrapped(text: str, width: int, pieces: int | None = None) -> str:
    wrap = WordWrap(lambda: width)
    step = pieces or max(len(text), 1)
    return "".join(wrap.push(text[at : at + step]) for at in range(0, len(text), step)) + wrap.flush()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("the quick brown fox", ["the quick ", "brown fox"]),
        ("the quick\nbrown fox", ["the quick", "brown fox"]),
        ("abcdefghij klm", ["abcdefghij", "klm"]),
        ("a abcdefghijklmno b", ["a ", "abcdefghijklmno", "b"]),
        (
            "```\na very long line of code\n```\nand then more text",
            ["```", "a very long line of code", "```", "and then ", "more text"],
        ),
        ("漢字漢字漢字漢字", ["漢字漢字漢", "字漢字"]),
    ],
)
def test_lines_break_between_words(text: str, lines: list[str]) -> None:
    assert wrapped(text, 10).split("\n") == lines


@given(TEXT, st.integers(1, 20), st.integers(1, 7))
def test_pieces_make_no_difference(text: str, width: int, pieces: int) -> None:
    assert wrapped(text, width, pieces) == wrapped(text, width)


@given(TEXT, st.integers(1, 20))
def test_nothing_but_breaks_is_added_and_nothing_but_spaces_lost(text: str, width: int) -> None:
    assert "".join(wrapped(text, width).split()) == "".join(text.split())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(answer, "_terminal_width", lambda: 10)
    printer = Printer(out, out)
    for piece in ("let me ", "think\x1b[2J about"):
        printer.reasoning(piece)
    for piece in ("the qui", "ck brown", " fox"):
        printer.content(piece)
    printer.end()
    return out.getvalue()


def test_a_terminal_gets_wrapped_dimmed_harmless_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(Terminal(), monkeypatch) == "\x1b[2mlet me \nthink[2J \nabout\x1b[0m\n\nthe quick \nbrown fox\n"


def test_a_pipe_gets_the_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(io.StringIO(), monkeypatch) == "let me think\x1b[2J about\n\nthe quick brown fox\n"
