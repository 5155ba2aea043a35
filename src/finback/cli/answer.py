"""One answer as it comes: printed piece by piece, reasoning dimmed, stopped by Ctrl-C without ending the program."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from finback.cli.output import rate_text, safe_text
from finback.cli.wrap import WordWrap

if TYPE_CHECKING:
    from finback.api import LoadedModel, Piece

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said, and how long it took. ``stopped``: by Ctrl-C, so it is not complete."""

    text: str
    reasoning: str
    stopped: bool
    finish_reason: str | None
    prompt_tokens: int | None  # None: stopped before that was told
    completion_tokens: int
    first_piece_s: float
    total_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """Speed after the first piece; None if there is too little to tell."""
        spent = self.total_s - self.first_piece_s
        return (self.completion_tokens - 1) / spent if self.completion_tokens > 1 and spent > 0 else None

    def describe(self) -> str:
        """The figures in one line."""
        speed = self.tokens_per_s
        rate = f", {rate_text(speed)} tokens/s" if speed else ""
        ended = (
            " (stopped)"
            if self.stopped
            else " (cut off: the limit is reached)"
            if self.finish_reason == "length"
            else ""
        )
        asked = "" if self.prompt_tokens is None else f"{self.prompt_tokens} prompt tokens, "
        first = f"first words after {self.first_piece_s:.2f} s"
        return f"{asked}{first}; {self.completion_tokens} answer tokens{rate}{ended}"


class StopSignal:
    """Ctrl-C while an answer comes. Before its first piece it interrupts at once; after that the first press asks to
    stop between two pieces, and a second one interrupts.
    """

    def __init__(self) -> None:
        self.asked = False
        self.gentle = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked or not self.gentle:
            self.asked = True
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """SIGINT is an answer's own for a while."""
    stop = StopSignal()
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class Printer:
    """Writes an answer: content to ``out``, reasoning dimmed to ``aside``. In a terminal, control characters of the
    model's are dropped and lines break between words; into a pipe the text goes as it is.
    """

    def __init__(self, out: TextIO, aside: TextIO) -> None:
        self._out = out
        self._aside = aside
        self._wrap = WordWrap(_terminal_width)
        self._in_reasoning = False
        self._at_line_start = True

    def reasoning(self, text: str) -> None:
        """A piece of what the model thinks before it answers."""
        if not text:
            return
        if not self._in_reasoning and self._aside.isatty():
            self._aside.write(_DIM)
        self._in_reasoning = True
        self._write(self._aside, text)

    def content(self, text: str) -> None:
        """A piece of the answer."""
        if not text:
            return
        self._leave_reasoning()
        self._write(self._out, text)

    def end(self) -> None:
        """The answer is over, whole or not."""
        self._leave_reasoning()
        self._release(self._out)
        if not self._at_line_start:
            self._out.write("\n")
        self._at_line_start = True
        self._out.flush()

    def _leave_reasoning(self) -> None:
        if not self._in_reasoning:
            return
        self._in_reasoning = False
        self._release(self._aside)
        if self._aside.isatty():
            self._aside.write(_PLAIN)
        self._aside.write("\n" if self._at_line_start else "\n\n")
        self._aside.flush()
        self._at_line_start = True

    def _write(self, stream: TextIO, text: str) -> None:
        stream.write(self._wrap.push(safe_text(text)) if stream.isatty() else text)
        stream.flush()
        self._at_line_start = text.endswith("\n")

    def _release(self, stream: TextIO) -> None:
        """Show what is held back until its word is complete."""
        if stream.isatty():
            stream.write(self._wrap.flush())


def _terminal_width() -> int:
    return max(20, shutil.get_terminal_size().columns)


def chat_answer(
    model: LoadedModel,
    messages: Sequence[Mapping[str, Any]],
    printer: Printer,
    *,
    thinking: bool | None = None,
    sampling: Mapping[str, Any],
) -> Answer:
    """Ask, print, and tell what came of it. Ctrl-C stops the answer; what was said until then stays."""
    started = time.perf_counter()
    pieces = model.chat_stream(messages, thinking=thinking, **sampling)
    return follow(pieces, printer, started)


def follow(pieces: Iterator[Piece], printer: Printer, started: float) -> Answer:
    """Print pieces until they end or Ctrl-C stops them."""
    course = _Course(started)
    with stop_signal() as stop:
        try:
            with closing(pieces):  # type: ignore[type-var]
                for piece in pieces:
                    stop.gentle = True
                    course.take(piece)
                    printer.reasoning(piece.reasoning)
                    printer.content(piece.text)
                    if stop.asked:
                        break
        except KeyboardInterrupt:
            stop.asked = True
        finally:
            printer.end()
    return course.answer(stopped=stop.asked and course.finish_reason is None)


class _Course:
    """What has come so far."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._first: float | None = None
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._tokens = 0
        self._prompt_tokens: int | None = None
        self.finish_reason: str | None = None

    def take(self, piece: Piece) -> None:
        if self._first is None:
            self._first = time.perf_counter()
        self._texts.append(piece.text)
        self._reasoning.append(piece.reasoning)
        self._tokens += len(piece.tokens)
        if piece.finish_reason is not None:
            self.finish_reason = piece.finish_reason
        if piece.usage is not None:
            self._prompt_tokens = piece.usage.prompt_tokens

    def answer(self, *, stopped: bool) -> Answer:
        now = time.perf_counter()
        first = (self._first or now) - self._started
        text, reasoning = "".join(self._texts), "".join(self._reasoning)
        return Answer(
            text, reasoning, stopped, self.finish_reason, self._prompt_tokens, self._tokens, first, now - self._started
        )


def terminal_printer() -> Printer:
    """For a conversation: all of it on stdout in a terminal, only answers on stdout in a pipe."""
    return Printer(sys.stdout, sys.stdout if sys.stdout.isatty() else sys.stderr)
