"""What an engine has done and is doing, in numbers: for metrics, and for how long to wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

RECENT_S = 10.0  # what "recent" means


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. What is not said to be of this moment counts from the engine's start."""

    running: int  # requests, now
    waiting: int  # requests, now
    blocks_total: int  # of the key-value cache
    blocks_free: int  # now, and hold nothing
    blocks_cached: int  # now, and hold a beginning that no request uses: as good as free
    prefix_query_tokens: int  # of prompts that were looked up in the cache
    prefix_hit_tokens: int  # of those, found
    prefix_restored_tokens: int  # read from disk
    preemptions: int  # times that a request gave its blocks up
    steps: int
    prompt_tokens: int  # computed: without what was found, with what was computed again
    output_tokens: int  # chosen
    output_tokens_per_s: float  # over the last ten seconds
    draft_tokens: int  # guessed and computed
    draft_tokens_kept: int  # of those, as they were chosen


class Rate:
    """Events per second of late. Other threads may read it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._events: deque[tuple[float, int]] = deque()
        self.total = 0

    def add(self, count: int) -> None:
        """Note that ``count`` of them happened now."""
        now = self._clock()
        self.total += count
        self._events.append((now, count))
        while self._events[0][0] < now - RECENT_S:
            self._events.popleft()

    @property
    def per_s(self) -> float:
        """How many there were in each of the last seconds."""
        now = self._clock()
        recent = sum(count for at, count in tuple(self._events) if at >= now - RECENT_S)
        return recent / max(min(now - self._began, RECENT_S), 1.0)
