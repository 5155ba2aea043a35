"""Keeps control tokens out of what users write while it passes through a template.

A template returns one string, in which nobody can tell its own text from the users'. So users' strings carry a barrier,
a character that occurs nowhere else, wherever they hold a control token or begin or end with a part of one. The barrier
is taken out of the result again, and no control token may reach across the place where it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from finback.errors import InvalidRequest
from finback.text.added import Piece

_CANDIDATES = range(0x10F000, 0x10FFFE)  # for private use


class Barriers:
    """The control tokens of one vocabulary."""

    def __init__(self, control_texts: Iterable[str]) -> None:
        self._texts = frozenset(control_texts)
        self._beginnings = frozenset(text[:n] for text in self._texts for n in range(1, len(text)))
        self._ends = frozenset(text[n:] for text in self._texts for n in range(1, len(text)))
        self._longest = max(map(len, self._texts), default=0)
        self._lengths: dict[str, set[int]] = {}  # by first two characters
        for text in self._texts:
            self._lengths.setdefault(text[:2], set()).add(len(text))
        first = "".join(map(re.escape, sorted({text[0] for text in self._texts})))
        self._candidates = re.compile(f"[{first}]" if first else "(?!)")

    def put(self, value: Any, barrier: str) -> Any:
        """A copy of JSON data with barriers in all strings that need them."""
        if isinstance(value, str):
            return self._put_in_text(value, barrier)
        if isinstance(value, dict):
            return {self.put(key, barrier): self.put(item, barrier) for key, item in value.items()}
        return [self.put(item, barrier) for item in value] if isinstance(value, list) else value

    def _put_in_text(self, text: str, barrier: str) -> str:
        """Spaces at the ends stay outside, because templates take them off."""
        core = text.strip()
        if not core:
            return text
        head, _, tail = text.partition(core)
        starts = [match.start() for match in self._candidates.finditer(core) if self._holds(core, match.start())]
        edges = [0, *(start + 1 for start in starts), len(core)]
        inside = barrier.join(core[a:b] for a, b in pairwise(edges))
        reach = range(1, min(self._longest, len(core)) + 1)
        before = any(core[:n] in self._ends for n in reach)
        after = any(core[-n:] in self._beginnings for n in reach)
        return head + barrier * before + inside + barrier * after + tail

    def _holds(self, text: str, start: int) -> bool:
        lengths = self._lengths.get(text[start : start + 2], ())
        return any(text[start : start + length] in self._texts for length in lengths)


def unused_character(values: Iterable[str]) -> str:
    """A character that none of the strings contains."""
    used = set().union(*values)
    for code in _CANDIDATES:
        if chr(code) not in used:
            return chr(code)
    raise InvalidRequest("the messages use up all characters that are set aside for private use", parameter="messages")


def take_out(text: str, barrier: str) -> list[Piece]:
    """The text in pieces that no control token reaches across."""
    return [Piece(part, trusted=True) for part in text.split(barrier) if part]
