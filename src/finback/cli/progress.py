"""How far a pull is, on stderr: a live bar in a terminal, a line now and then in a log; rate and time left in both."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, TextIO

from finback.cli.output import note, safe_text, size_text, stderr
from finback.hub.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_WINDOW_S = 15.0
_LINE_EVERY_S = 10.0


class Pace:
    """Bytes per second over the last while. Bytes that were found on disk, or thrown away, are no speed."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._moved_bytes = 0

    def add(self, count_bytes: int) -> None:
        now = time.monotonic()
        self._moved_bytes += max(count_bytes, 0)
        self._samples.append((now, self._moved_bytes))
        while len(self._samples) > 2 and self._samples[1][0] < now - _WINDOW_S:
            self._samples.popleft()

    @property
    def bytes_per_s(self) -> float:
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def describe(self, left_bytes: int) -> str:
        """Rate and time left; nothing before there is something to say."""
        rate = self.bytes_per_s
        if rate <= 0:
            return ""
        left = f", {duration_text(left_bytes / rate)} left" if left_bytes > 0 else ""
        return f"{size_text(rate)}/s{left}"


def duration_text(seconds: float) -> str:
    """8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class PullLines(Progress):
    """For logs and pipes: one line at the start, one every ten seconds, one at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._label = ""
        self._total = self._done = 0
        self._pace = Pace()
        self._told = 0.0

    def begin(self, label: str, total_bytes: int) -> None:
        self._label, self._total, self._told = label, total_bytes, time.monotonic()
        self._say(f"{label}: {size_text(total_bytes)} to fetch")

    def found(self, count_bytes: int) -> None:
        self._done += count_bytes

    def advance(self, count_bytes: int) -> None:
        self._done += count_bytes
        self._pace.add(count_bytes)
        if time.monotonic() - self._told >= _LINE_EVERY_S:
            self._told = time.monotonic()
            share = self._done / max(self._total, 1)
            pace = self._pace.describe(self._total - self._done)
            self._say(f"{self._label}: {share:.0%} of {size_text(self._total)}{', ' if pace else ''}{pace}")

    def note(self, text: str) -> None:
        self._say(text)

    def end(self) -> None:
        if self._total and self._done >= self._total:
            self._say(f"{self._label}: complete")

    def _say(self, text: str) -> None:
        print(safe_text(text), file=self._stream, flush=True)


class PullBar(Progress):
    """For people: one line that moves."""

    def __init__(self) -> None:
        self._console = stderr()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._total = self._done = 0
        self._pace = Pace()

    def begin(self, label: str, total_bytes: int) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %", markup=False),
            TextColumn("{task.fields[state]}", markup=False, style="dim"),
        )
        self._total = total_bytes
        self._bar = Bar(*columns, console=self._console, transient=False)
        self._task = self._bar.add_task(safe_text(label), total=total_bytes, state=size_text(total_bytes))
        self._bar.start()

    def found(self, count_bytes: int) -> None:
        self._done += count_bytes
        self._update()

    def advance(self, count_bytes: int) -> None:
        self._done += count_bytes
        self._pace.add(count_bytes)
        self._update()

    def note(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(safe_text(text), style="dim", markup=False, highlight=False)
        else:
            note(text)

    def end(self) -> None:
        if self._bar:
            self._update()
            self._bar.stop()

    def _update(self) -> None:
        if self._bar and self._task is not None:
            state = f"{size_text(self._total)}  {self._pace.describe(self._total - self._done)}"
            self._bar.update(self._task, completed=self._done, state=state)


def pull_progress() -> Progress:
    """The progress that suits stderr."""
    return PullBar() if sys.stderr.isatty() else PullLines(sys.stderr)
