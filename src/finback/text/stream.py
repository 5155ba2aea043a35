"""Reads a model's answer as it comes: reasoning, content, tool calls.

Whatever pieces the answer comes in, the events add up to the same. Text is held back only while it may still be markup.
"""

from __future__ import annotations

from collections.abc import Iterable

from finback.text.events import Content, Event, Reasoning, ToolCallArguments, ToolCallStart
from finback.text.reasoning import ReasoningSplitter
from finback.text.tool_calls import CallParser, NoCalls

__all__ = [
    "Content",
    "Event",
    "Reasoning",
    "StreamParser",
    "ToolCallArguments",
    "ToolCallStart",
]


class StreamParser:
    """Turns the text of one answer into events."""

    def __init__(self, reasoning: ReasoningSplitter | None = None, calls: CallParser | None = None) -> None:
        """``reasoning``: None for a model that does not reason. ``calls``: None if no tools were offered."""
        self._reasoning = reasoning
        self._calls = calls or NoCalls()

    def push(self, text: str) -> list[Event]:
        """What ``text`` makes known."""
        texts = [Content(text)] if self._reasoning is None else self._reasoning.push(text)
        return _joined(self._read(texts))

    def flush(self) -> list[Event]:
        """What was held back, when the answer has ended."""
        texts = () if self._reasoning is None else self._reasoning.flush()
        return _joined([*self._read(texts), *self._calls.flush()])

    def _read(self, texts: Iterable[Reasoning | Content]) -> Iterable[Event]:
        for text in texts:
            if isinstance(text, Reasoning):
                yield text
            elif text.text:
                yield from self._calls.push(text.text)


def _joined(events: Iterable[Event]) -> list[Event]:
    """Events with neighbours of one kind made one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Content) and isinstance(last, Content):
            found[-1] = Content(last.text + event.text)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + event.text)
        elif isinstance(event, ToolCallArguments) and isinstance(last, ToolCallArguments) and event.index == last.index:
            found[-1] = ToolCallArguments(event.index, last.text + event.text)
        else:
            found.append(event)
    return found
