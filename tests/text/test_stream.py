"""Readers of answers: the same result in whatever pieces the answer comes, nothing lost, nothing held too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finback.text.events import Content, Event, Reasoning, ToolCallArguments, ToolCallStart
from finback.text.reasoning import ReasoningSplitter
from finback.text.stream import StreamParser
from finback.text.tool_calls import DeepSeekCalls, TaggedCalls, make_call_id

BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, END_CALL, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"

MakeParser = Callable[[], StreamParser]


def _id() -> str:
    return "id"


PARSERS: dict[str, MakeParser] = {
    "plain": lambda: StreamParser(),
    "thinking": lambda: StreamParser(ReasoningSplitter(opened=False)),
    "opened": lambda: StreamParser(ReasoningSplitter(opened=True)),
    "fenced": lambda: StreamParser(ReasoningSplitter(opened=False), DeepSeekCalls(fenced=True, make_id=_id)),
    "bare": lambda: StreamParser(ReasoningSplitter(opened=True), DeepSeekCalls(fenced=False, make_id=_id)),
    "tagged": lambda: StreamParser(ReasoningSplitter(opened=False), TaggedCalls(make_id=_id)),
}


def _sum(events: Iterable[Event]) -> list[Any]:
    """Events with neighbours of one kind made one."""
    found: list[Any] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, (Content, Reasoning)) and type(event) is type(last):
            found[-1] = type(event)(last.text + event.text)
        elif isinstance(event, ToolCallArguments) and isinstance(last, ToolCallArguments):
            found[-1] = ToolCallArguments(event.index, last.text + event.text)
        else:
            found.append(event)
    return found


def _read(parser: StreamParser, pieces: Iterable[str]) -> list[Any]:
    events = [event for piece in pieces for event in parser.push(piece)]
    return _sum([*events, *parser.flush()])


def _calls(*calls: tuple[str, str]) -> list[Event]:
    return [
        event
        for index, (name, arguments) in enumerate(calls)
        for event in (ToolCallStart(index, "id", name), ToolCallArguments(index, arguments))
        if getattr(event, "text", "x")
    ]


def _fenced(name: str, arguments: str) -> str:
    return f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{END_CALL}"


CASES: list[tuple[str, str, list[Any]]] = [
    ("plain", "<think>a</think><tool_call>", [Content("<think>a</think><tool_call>")]),
    ("thinking", "yes", [Content("yes")]),
    ("thinking", "", []),
    ("thinking", " \n", [Content(" \n")]),
    ("thinking", "<think>\nhm\n\n</think>\n\nyes\n", [Reasoning("hm"), Content("yes\n")]),
    ("thinking", " \n<think>a\n\nb</think>c", [Reasoning("a\n\nb"), Content("c")]),
    ("thinking", "<think>\n\n</think>\n\nyes", [Content("yes")]),
    ("thinking", "<think></think>", []),
    ("thinking", "a<think>b</think>", [Content("a<think>b</think>")]),
    ("thinking", "<think>a</think>b</think>c<think>", [Reasoning("a"), Content("b</think>c<think>")]),
    ("thinking", "<thin", [Content("<thin")]),
    ("thinking", "<thin>", [Content("<thin>")]),
    ("thinking", "<think>a</thin", [Reasoning("a</thin")]),
    ("thinking", "<think>a\n", [Reasoning("a\n")]),
    ("thinking", "<think>a</think>\n", [Reasoning("a")]),
    ("thinking", "<<think>a", [Content("<<think>a")]),
    ("opened", "hm\n</think>\n\nyes", [Reasoning("hm"), Content("yes")]),
    ("opened", "\nhm", [Reasoning("hm")]),
    ("opened", "</think>yes", [Content("yes")]),
    ("opened", "a<</think>b", [Reasoning("a<"), Content("b")]),
    ("fenced", f"{BEGIN}{_fenced('f', '{}')}{END}", _calls(("f", "{}"))),
    (
        "fenced",
        "<think>hm</think>Look:\n" + BEGIN + _fenced("f", '{"a": "`x`"}') + "\n" + _fenced("g", "[1]") + END + "\n",
        [Reasoning("hm"), Content("Look:\n"), *_calls(("f", '{"a": "`x`"}'), ("g", "[1]"))],
    ),
    ("fenced", f"{BEGIN} \n{_fenced('f', '')}\n{END}", _calls(("f", ""))),
    ("fenced", _fenced("f", "{}"), _calls(("f", "{}"))),
    ("fenced", f"{BEGIN}{_fenced('f', '{}')}{END}Done.", [*_calls(("f", "{}")), Content("Done.")]),
    ("fenced", f"{BEGIN}{_fenced('f', 'not JSON ```')}{END}", _calls(("f", "not JSON"))),
    ("fenced", f"{CALL}function{SEP}f\n\n ```\n{{\n}}{END_CALL}", _calls(("f", "{\n}"))),
    ("fenced", f"{CALL}function{SEP}f\n```json\n{{}}{END}", _calls(("f", "{}"))),
    ("fenced", f"{CALL}function{SEP}f\n```json\n{{}}{_fenced('g', '{}')}", _calls(("f", "{}"), ("g", "{}"))),
    ("fenced", f'{CALL}function{SEP}f\n```json\n{{"a": "b', _calls(("f", '{"a": "b'))),
    ("fenced", f'{CALL}function{SEP}f\n```json\n{{"a": "b <｜tool', _calls(("f", '{"a": "b <｜tool'))),
    ("bare", f"hm</think>{BEGIN}{CALL}f{SEP}{{}}{END_CALL}{END}", [Reasoning("hm"), *_calls(("f", "{}"))]),
    (
        "bare",
        f"</think>a{BEGIN}{CALL}f{SEP}{{}}{END_CALL}{CALL}g{SEP} {{}} {END_CALL}{END}",
        [Content("a"), *_calls(("f", "{}"), ("g", "{}"))],
    ),
    (
        "tagged",
        'Look.\n<tool_call>\n{"name": "f", "arguments": {"ä": [1, "</"]}}\n</tool_call>\n'
        '<tool_call>{"name": "g"}</tool_call>\n',
        [Content("Look.\n"), *_calls(("f", '{"ä": [1, "</"]}'), ("g", "{}"))],
    ),
    ("tagged", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', _calls(("f", '{"a": 1}'))),
    ("tagged", '<tool_call>{"name": "f", "arguments": {}}', _calls(("f", "{}"))),
    ("tagged", '<tool_call>{"name": "f"}</tool_call> so', [*_calls(("f", "{}")), Content(" so")]),
]

# What only looks like a call, to the letter content.
BROKEN: list[tuple[str, str]] = [
    ("fenced", BEGIN),
    ("fenced", f"{BEGIN}{END}"),
    ("fenced", f"{BEGIN}hello{END}"),
    ("fenced", f"{BEGIN} {CALL}"),
    ("fenced", f"{CALL}f{END_CALL}{END}"),
    ("fenced", f"{CALL}function{SEP}{END_CALL}"),
    ("fenced", f"{CALL}function{SEP}\n```json\n{{}}\n```{END_CALL}"),
    ("fenced", f'{CALL}function{SEP}f\n{{"a": 1}}\n{END_CALL}'),
    ("fenced", f"{CALL}function f\n```json\n{{}}\n```{END_CALL}"),
    ("fenced", f"{CALL}function{SEP}f"),
    ("fenced", f"{CALL}function{SEP}f\n"),
    ("fenced", f"{CALL}function{SEP}f\n```js"),
    ("fenced", f"{CALL}{'x' * 600}{SEP}f\n```json\n{{}}\n```{END_CALL}"),
    ("fenced", f"a{END}b{END_CALL}c{SEP}"),
    ("bare", f"</think>{BEGIN}{CALL}{SEP}{{}}{END_CALL}{END}"),
    ("bare", f"</think>{CALL}a\nb{SEP}{{}}{END_CALL}"),
    ("bare", f"</think>{CALL}f"),
    ("bare", f"</think>{BEGIN}{BEGIN}"),
    ("tagged", "<tool_call>"),
    ("tagged", "<tool_call>no JSON</tool_call> so"),
    ("tagged", '<tool_call>{"name": "f", "arguments": {}'),
    ("tagged", '<tool_call>{"name": 3}</tool_call>'),
    ("tagged", '<tool_call>{"name": ""}</tool_call>'),
    ("tagged", '<tool_call>["f"]</tool_call>'),
    ("tagged", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>\n\nso'),
    ("tagged", f"<tool_call>{'[' * 5000}</tool_call>"),
    ("tagged", "</tool_call><tool_"),
]
EVERY = [*CASES, *((name, text, [Content(text.removeprefix("</think>"))]) for name, text in BROKEN)]


@pytest.mark.parametrize(("name", "answer", "expected"), EVERY)
def test_what_is_read(name: str, answer: str, expected: list[Any]) -> None:
    assert _read(PARSERS[name](), [answer]) == expected


@pytest.mark.parametrize(("name", "answer", "expected"), EVERY)
def test_pieces_of_every_size(name: str, answer: str, expected: list[Any]) -> None:
    for size in (1, 2, 3, 5, 7, 16, 23):
        pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
        assert _read(PARSERS[name](), pieces) == expected


@pytest.mark.parametrize(("name", "answer", "expected"), [case for case in EVERY if len(case[1]) < 250])
def test_every_cut_in_two(name: str, answer: str, expected: list[Any]) -> None:
    for at in range(len(answer) + 1):
        assert _read(PARSERS[name](), [answer[:at], answer[at:]]) == expected


@pytest.mark.parametrize(
    ("name", "answer"),
    [("thinking", "\n<think>\na\n</think>\nb"), ("opened", "a\n</think>\n\nb\n"), ("tagged", "<tool_call>{}")],
)
def test_every_way_to_cut(name: str, answer: str) -> None:
    """Up to four cuts anywhere, which meets every pair of neighbouring states."""
    expected = _read(PARSERS[name](), [answer])
    for count in range(5):
        for cuts in combinations(range(1, len(answer)), count):
            edges = [0, *cuts, len(answer)]
            pieces = [answer[a:b] for a, b in pairwise(edges)]
            assert _read(PARSERS[name](), pieces) == expected


PARTS = st.sampled_from(
    ["<think>", "</think>", BEGIN, END, CALL, END_CALL, SEP, "<tool_call>", "</tool_call>", "function", "f", "\n", " ",
     "```json\n", "\n```", "{}", '{"name": "f", "arguments": {"a": 1}}', "<", "<｜", "｜>", "text", "</", "`", "ä"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(list(PARSERS)), parts=st.lists(PARTS, max_size=14), data=st.data())
def test_any_answer_in_any_pieces(name: str, parts: list[str], data: st.DataObject) -> None:
    answer = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=10)))
    edges = [0, *cuts, len(answer)]
    pieces = [answer[a:b] for a, b in pairwise(edges)]
    whole = _read(PARSERS[name](), [answer])
    assert _read(PARSERS[name](), pieces) == whole
    assert _read(PARSERS[name](), answer) == whole


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(["fenced", "bare", "tagged"]), parts=st.lists(PARTS, max_size=10))
def test_without_a_call_nothing_is_lost(name: str, parts: list[str]) -> None:
    """If no call is found, the answer reads as if calls were not looked for."""
    answer = "".join(parts)
    found = _read(PARSERS[name](), [answer])
    if not any(isinstance(event, ToolCallStart) for event in found):
        assert found == _read(PARSERS["opened" if name == "bare" else "thinking"](), [answer])


@given(words=st.lists(st.sampled_from(["a", " ", "\n", "b ", "`"]), max_size=8), position=st.integers(0, 4))
def test_around_and_inside_calls_nothing_is_lost(words: list[str], position: int) -> None:
    text = "".join(words)
    assume(position != 1 or "```" not in text)  # behind a name, a fence opens the arguments
    slots = [""] * 5
    slots[position] = f"x{text}y"
    before, name, arguments, between, after = slots
    calls = f"{_fenced(f'f{name}', arguments)}{between}{_fenced('g', '{}')}"
    events = _read(PARSERS["fenced"](), [f"{before}{BEGIN}{calls}{END}{after}"])
    joined = "".join(event.name if isinstance(event, ToolCallStart) else event.text for event in events)
    assert f"x{text}y" in joined


@given(text=st.text(st.characters(exclude_characters="<\r\n \t"), min_size=1))
def test_plain_text_is_never_held_back(text: str) -> None:
    for name in ("thinking", "fenced", "tagged"):
        parser = PARSERS[name]()
        assert _sum(event for character in text for event in parser.push(character)) == [Content(text)]
        assert parser.flush() == []
    opened = PARSERS["opened"]()
    assert _sum(event for character in text for event in opened.push(character)) == [Reasoning(text)]


def _given_out(parser: StreamParser, answer: str) -> Iterator[tuple[str, str]]:
    """After each character: what has come, and what was given out of it."""
    out = ""
    for at, character in enumerate(answer, 1):
        out += "".join(getattr(event, "text", "") for event in parser.push(character))
        yield answer[:at], out


def test_only_what_may_be_markup_is_held_back() -> None:
    for come, out in _given_out(PARSERS["fenced"](), "a <b> <｜c <｜tool▁calls▁x"):
        held = come[len(out) :]
        assert come.startswith(out)
        assert BEGIN.startswith(held) or CALL.startswith(held)


def test_arguments_come_as_they_are_written() -> None:
    parser = PARSERS["bare"]()
    parser.push(f"</think>{CALL}f{SEP}")
    assert parser.push('{"a": "') == [ToolCallArguments(0, '{"a": "')]
    assert parser.push("x y ") == [ToolCallArguments(0, "x y")]
    assert parser.push("z") == [ToolCallArguments(0, " z")]


def test_a_call_begins_when_its_head_is_complete() -> None:
    parser = PARSERS["fenced"]()
    assert parser.push(f"{BEGIN}{CALL}function{SEP}look\n```json") == []
    assert parser.push("\n") == [ToolCallStart(0, "id", "look")]


def test_ids_of_calls_differ() -> None:
    ids = {make_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(id.startswith("call_") and id[5:].isalnum() for id in ids)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    "unit",
    ["<", "<think", "</think", "\n", " ", "`", CALL, BEGIN, "<｜tool", "<tool_call>", "{", f"{CALL}f{SEP}", "</"],
)
def test_time_is_linear_in_the_answer(name: str, unit: str) -> None:
    answer = unit * (60_000 // len(unit))
    started = time.process_time()
    _read(PARSERS[name](), [answer])
    _read(PARSERS[name](), (answer[at : at + 5] for at in range(0, len(answer) // 4, 5)))
    assert time.process_time() - started < 3
