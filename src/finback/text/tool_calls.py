"""Finds tool calls in a model's answer.

A call begins when its head is complete and sound; what only looks like a call comes out as content, to the letter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from secrets import token_hex
from typing import Protocol

from finback.text.events import Content, Event, ToolCallArguments, ToolCallStart
from finback.text.markup import CALL, CALLS, END_CALL, END_CALLS, END_TAG_CALL, FENCE, SEPARATOR, TAG_CALL
from finback.text.scan import Machine, Markers

_SPACES = " \t\r\n"
_MAX_HEAD = 512  # characters of a call before its arguments

Events = Iterator[Event]
MakeId = Callable[[], str]


def make_call_id() -> str:
    """An id that no other call has."""
    return f"call_{token_hex(12)}"


class CallParser(Protocol):
    """Turns the content of an answer into content and calls."""

    def push(self, text: str) -> Events:
        """What ``text`` makes known."""

    def flush(self) -> Events:
        """What was held back, when no text follows."""


class NoCalls:
    """For requests without tools: all is content."""

    def push(self, text: str) -> Events:
        """See CallParser."""
        return _content(text)

    def flush(self) -> Events:
        """See CallParser."""
        return iter(())


class DeepSeekCalls(Machine[Event]):
    """Calls between DeepSeek's markers; their arguments follow as they come, whether they are JSON or not.

    ``fenced`` (V3, R1): ``KIND<sep>NAME``, then the arguments in a fenced block. Else (V3.1): ``NAME<sep>ARGUMENTS``.
    Invariant: ``_raw`` and ``_head`` were consumed but not given out; they become content if they are no call.
    """

    _TEXT = Markers(CALLS, CALL)
    _BETWEEN = Markers(CALLS, CALL, END_CALLS)
    _ARGUMENTS = Markers(CALL, END_CALL, END_CALLS)

    def __init__(self, *, fenced: bool, make_id: MakeId = make_call_id) -> None:
        super().__init__(self._in_text)
        self._read_head = _fenced_name if fenced else _plain_name
        self._head_stops = Markers("\n" if fenced else SEPARATOR, CALLS, CALL, END_CALL, END_CALLS)
        self._not_arguments = _SPACES + FENCE if fenced else _SPACES
        self._make_id = make_id
        self._raw = ""  # up to the mark that opens a call, with it
        self._head = ""  # after that mark
        self._held = ""  # the end of the arguments, which may belong to what closes them
        self._index = -1

    def flush(self) -> Events:
        """See CallParser."""
        rest = self._scanner.take_all()
        if self._step in (self._before_arguments, self._in_arguments):
            return _arguments(self._index, self._held + rest if rest else "")
        raw = self._raw + self._head + rest
        return _content(raw if raw.strip(_SPACES) or self._step == self._in_text else "")

    def _in_text(self) -> Events:
        text, marker = self._scanner.take_until(self._TEXT)
        if marker is not None:
            self._open(marker)
        return _content(text)

    def _open(self, marker: str) -> None:
        self._raw += marker
        self._head = ""
        self._step = self._in_head if marker == CALL else self._between

    def _between(self) -> Events:
        """After the mark that opens calls, after each call, and after the mark that closes calls."""
        self._raw += self._scanner.take_spaces(_SPACES)
        marker, possible = self._scanner.take_marker(self._BETWEEN)
        if marker == CALL:
            self._open(marker)
        elif marker == END_CALLS and not self._raw.strip(_SPACES):
            self._raw = ""
        elif marker is not None or not possible:
            return self._give_up(marker)
        return iter(())

    def _in_head(self) -> Events:
        text, marker = self._scanner.take_until(self._head_stops)
        self._head += text
        if len(self._head) > _MAX_HEAD or marker in (CALLS, CALL, END_CALL, END_CALLS):
            return self._give_up(marker)
        if marker is None:
            return iter(())
        self._head += marker
        name = self._read_head(self._head)
        if name is None:
            return iter(())
        return self._start(name) if name else self._give_up(None)

    def _give_up(self, marker: str | None) -> Events:
        """It is no call: give out what was taken for one, and go on with the marker that showed it."""
        raw, self._raw, self._head = self._raw + self._head, "", ""
        self._step = self._in_text
        if marker in (CALL, CALLS):
            self._open(marker)
        elif marker is not None:
            raw += marker
        return _content(raw)

    def _start(self, name: str) -> Events:
        self._raw = self._head = self._held = ""
        self._index += 1
        self._step = self._before_arguments
        yield ToolCallStart(self._index, self._make_id(), name)

    def _before_arguments(self) -> Events:
        self._scanner.take_spaces(_SPACES)
        if self._scanner.left:
            self._step = self._in_arguments
        return iter(())

    def _in_arguments(self) -> Events:
        text, marker = self._scanner.take_until(self._ARGUMENTS)
        text = self._held + text
        kept = text.rstrip(self._not_arguments)
        self._held = text[len(kept) :]
        if marker == CALL:
            self._open(marker)
        elif marker is not None:
            self._step = self._between
        return _arguments(self._index, kept)


class TaggedCalls(Machine[Event]):
    """Calls as JSON objects between ``<tool_call>`` tags (Qwen, Hermes): sound or not only when the object is complete.

    Invariant: ``_raw`` was consumed but not given out; it becomes content if it is no call.
    """

    _OPEN = Markers(TAG_CALL)
    _CLOSE = Markers(END_TAG_CALL)

    def __init__(self, *, make_id: MakeId = make_call_id) -> None:
        super().__init__(self._in_text)
        self._make_id = make_id
        self._raw: list[str] = []
        self._index = -1

    def flush(self) -> Events:
        """See CallParser."""
        self._raw.append(self._scanner.take_all())
        if self._step == self._in_call:  # some models end without the closing tag
            return self._close("")
        return _content("" if self._step == self._between else "".join(self._raw))

    def _in_text(self) -> Events:
        text, marker = self._scanner.take_until(self._OPEN)
        if marker is not None:
            self._raw = [marker]
            self._step = self._in_call
        return _content(text)

    def _in_call(self) -> Events:
        text, marker = self._scanner.take_until(self._CLOSE)
        self._raw.append(text)
        return iter(()) if marker is None else self._close(marker)

    def _close(self, marker: str) -> Events:
        raw, self._raw = "".join(self._raw), []
        call = _read_object(raw.removeprefix(TAG_CALL))
        self._step = self._in_text if call is None else self._between
        if call is None:
            yield from _content(raw + marker)
            return
        self._index += 1
        yield ToolCallStart(self._index, self._make_id(), call[0])
        yield from _arguments(self._index, call[1])

    def _between(self) -> Events:
        """After a call: spaces count only if they lead to content."""
        self._raw.append(self._scanner.take_spaces(_SPACES))
        marker, possible = self._scanner.take_marker(self._OPEN)
        if marker is not None:
            self._raw = [marker]
            self._step = self._in_call
        elif not possible:
            self._step = self._in_text
            raw, self._raw = "".join(self._raw), []
            yield from _content(raw)


def _content(text: str) -> Events:
    return iter((Content(text),) if text else ())


def _arguments(index: int, text: str) -> Events:
    return iter((ToolCallArguments(index, text),) if text else ())


def _plain_name(head: str) -> str:
    """The name in ``NAME<sep>``; empty if there is none."""
    return _checked_name(head.removesuffix(SEPARATOR))


def _fenced_name(head: str) -> str | None:
    """The name in ``KIND<sep>NAME`` and a line that opens a fence; empty if it is none, None if lines are missing."""
    first, *others = head.split("\n")[:-1]
    name = _checked_name(first.partition(SEPARATOR)[2])
    filled = [line for line in others if line.strip()]
    if not name or (filled and not filled[0].lstrip().startswith(FENCE)):
        return ""
    return name if filled else None


def _checked_name(text: str) -> str:
    name = text.strip(_SPACES)
    return name if "\n" not in name and SEPARATOR not in name else ""


def _read_object(text: str) -> tuple[str, str] | None:
    """Name and arguments (as JSON) of a call; None if it is none."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return None
    arguments = call.get("arguments", {})
    if isinstance(arguments, dict):
        return call["name"], json.dumps(arguments, ensure_ascii=False)
    return (call["name"], arguments) if isinstance(arguments, str) else None
