"""Units, tables and the taming of text."""

from __future__ import annotations

import io
import sys

import pytest

from finback.cli import output, progress
from finback.cli.progress import PullBar, PullLines, duration_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (98_362_432, "98.4 MB"),
        (4_680_000_000, "4.68 GB"),
        (688.6e9, "689 GB"),
        (1.5e12, "1.5 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert output.size_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(134_515_008, "135 M"), (15.706e9, "15.7 B"), (671.026e9, "671 B"), (1.57e12, "1.57 T"), (12, "12")],
)
def test_counts(count: float, text: str) -> None:
    assert output.count_text(count) == text


@pytest.mark.parametrize(("rate", "text"), [(1234.5, "1234"), (123.4, "123"), (45.67, "45.7"), (0.789, "0.79")])
def test_rates(rate: float, text: str) -> None:
    assert output.rate_text(rate) == text


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert output.safe_text("plain — 漢字\n\ttext") == "plain — 漢字\n\ttext"
    assert output.safe_text("\x1b[2J\x07\x00a\x9bb\x7f\rc") == "[2Jabc"


def test_tables_are_aligned_and_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    output.print_table(("NAME", "SIZE"), [("x" * 60, "1 B"), ("[b]y", "123 MB")], right=("SIZE",))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME" + " " * 56 + "    SIZE", "x" * 60 + "     1 B", "[b]y" + " " * 56 + "  123 MB"]


def test_facts_leave_out_what_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_facts([("name", "a"), ("nothing", ""), ("longer", "first\nsecond")])
    assert capsys.readouterr().out == "name    a\nlonger  first\n        second\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time stands at ``clock[0]``."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock: list[float]) -> None:
    stream = io.StringIO()
    lines = PullLines(stream)
    lines.begin("m", 100_000_000)
    lines.found(40_000_000)
    for _ in range(30):
        clock[0] += 1.0
        lines.advance(2_000_000)
    lines.note("a retry")
    lines.end()
    assert stream.getvalue().splitlines() == [
        "m: 100 MB to fetch",
        "m: 60% of 100 MB, 2 MB/s, 20 s left",
        "m: 80% of 100 MB, 2 MB/s, 10 s left",
        "m: 100% of 100 MB, 2 MB/s",
        "a retry",
        "m: complete",
    ]


def test_bytes_that_were_found_or_lost_are_no_speed(clock: list[float]) -> None:
    pace = progress.Pace()
    clock[0] += 10
    pace.add(1000)
    pace.add(-500)
    assert pace.bytes_per_s == 100
    assert progress.Pace().describe(1000) == ""


def test_the_pace_is_of_the_last_while(clock: list[float]) -> None:
    pace = progress.Pace()
    for second in range(60):
        clock[0] += 1
        pace.add(1000 if second < 30 else 10)
    assert pace.bytes_per_s == 10


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    bar = progress.pull_progress()
    assert isinstance(bar, PullBar)
    bar.begin("smollm2:135m-q4_1", 1_000_000)
    bar.note("a retry")
    bar.advance(1_000_000)
    bar.end()
    text = stream.getvalue()
    assert "smollm2:135m-q4_1" in text
    assert "a retry" in text
    assert "100 %" in text
    assert "1 MB" in text
