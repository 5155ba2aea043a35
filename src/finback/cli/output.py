"""How commands print: data to stdout, words to stderr, figures in units that people read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# A program's own output is trusted; a model's is not: it may not move the cursor, set titles or write the clipboard.
_KEPT_CONTROLS = frozenset("\n\t")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def complain(message: str, hint: str | None) -> None:
    """An error and its way out, each on its own line on stderr."""
    console = stderr()
    _labelled(console, "error", "bold red", message)
    if hint:
        _labelled(console, "hint", "bold cyan", hint)


def note(text: str) -> None:
    """Something worth knowing, on stderr."""
    stderr().print(safe_text(text), style="dim", markup=False, highlight=False, soft_wrap=True)


def stderr() -> Console:
    """A console on stderr as it is now."""
    return _console(sys.stderr)


def stdout() -> Console:
    """A console on stdout as it is now."""
    return _console(sys.stdout)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """An aligned table on stdout; nothing is cut off, neither in a pipe nor in a narrow window."""
    cells = [[safe_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    console = stdout()
    for at, row in enumerate([list(columns), *cells]):
        padded = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, columns, strict=True)
        ]
        line = "  ".join(padded).rstrip()
        console.print(_plain(line), style="bold" if at == 0 else "", soft_wrap=True)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Labelled values on stdout, one per line; a value's further lines are indented under it."""
    console = stdout()
    listed = [(label, value) for label, value in facts if value]
    width = max((len(label) for label, _ in listed), default=0)
    for label, value in listed:
        first, *rest = value.splitlines()
        console.print(_plain(f"{label:<{width}}  "), end="", style="dim", soft_wrap=True)
        console.print(_plain(first), soft_wrap=True, highlight=False)
        for line in rest:
            console.print(_plain(" " * (width + 2) + line), soft_wrap=True, highlight=False)


def safe_text(text: str) -> str:
    """``text`` without control characters, so that it cannot steer the terminal."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c in _KEPT_CONTROLS or not (ord(c) < 32 or 127 <= ord(c) < 160))


def size_text(count: float) -> str:
    """Bytes in decimal units, as disks and networks are sold."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.3g} {unit}" if abs(count) < 999.5 * scale else f"{count / scale:.0f} {unit}"
    return f"{count:.0f} B"


def count_text(count: float) -> str:
    """Parameters and the like: 135 M, 15.7 B, 671 B."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f}"


def rate_text(rate: float) -> str:
    """Tokens per second, with the digits that mean something."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def _labelled(console: Console, label: str, style: str, text: str) -> None:
    console.print(f"{label}:", style=style, end=" ", markup=False, highlight=False)
    console.print(safe_text(text), markup=False, highlight=False, soft_wrap=True)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(safe_text(text))


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False)
