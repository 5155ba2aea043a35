"""Figures for Prometheus, in its text format. Labels are routes and statuses: nothing that tells one key's requests.

Written by hand: a dozen counts and two histograms need no library with a registry of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from finback.engine.stats import EngineStats
from finback.meter.ledger import Entry

_WAIT_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_PER_TOKEN_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts of values by upper bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self, name: str) -> Iterator[str]:
        """The lines of the exposition."""
        below = 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {below}"


class Metrics:
    """What the server has done since its start. Touched by the event loop only."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._queued = Histogram(_WAIT_S)
        self._first_token = Histogram(_WAIT_S)
        self._per_token = Histogram(_PER_TOKEN_S)
        self.unbooked = 0  # requests that could not be put into the ledger

    def replied(self, route: str, status: int) -> None:
        """Count a response; status 0: the client was gone before there was one."""
        self._requests[route, status or 499] += 1

    def answered(self, entry: Entry, queue_ms: int | None, per_token_s: Sequence[float]) -> None:
        """Count a request that the engine has done its last work for; ``per_token_s``: of each of its answers.

        ``queue_ms``: until it was first computed; None: it never was, or brought nothing.
        """
        for kind in ("prompt", "cached", "reasoning", "output"):
            self._tokens[kind] += getattr(entry, f"{kind}_tokens")
        for reason in str(entry.finish_reason).split(","):
            self._reasons[reason] += 1
        if queue_ms is not None:
            self._queued.observe(queue_ms / 1000)
        if entry.first_token_ms is not None:
            self._first_token.observe((entry.first_token_ms - entry.arrived_ms) / 1000)
        for seconds in per_token_s:
            self._per_token.observe(seconds)

    def render(self, engine: EngineStats, *, engine_failures: int, connections: int) -> str:
        """The exposition."""
        gauges = {
            "requests_running": (engine.running, "Requests that are being computed."),
            "requests_waiting": (engine.waiting, "Requests in the queue."),
            "http_requests_active": (connections, "HTTP requests between their heads and their ends."),
            "cache_blocks": (engine.blocks_total, "Blocks of the key-value cache."),
            "cache_blocks_free": (engine.blocks_free, "Blocks that hold nothing."),
            "cache_blocks_kept": (engine.blocks_cached, "Blocks that hold a beginning that no request uses."),
            "output_tokens_per_second": (engine.output_tokens_per_s, "Tokens written, over the last ten seconds."),
        }
        counters = {
            "engine_steps_total": (engine.steps, "Steps of the engine; output tokens over steps is the batch."),
            "engine_prompt_tokens_total": (engine.prompt_tokens, "Prompt tokens that were computed."),
            "engine_output_tokens_total": (engine.output_tokens, "Tokens that were chosen."),
            "prefix_query_tokens_total": (engine.prefix_query_tokens, "Prompt tokens looked up in the prefix cache."),
            "prefix_hit_tokens_total": (engine.prefix_hit_tokens, "Of those, found."),
            "prefix_restored_tokens_total": (engine.prefix_restored_tokens, "Of those, found on disk."),
            "draft_tokens_total": (engine.draft_tokens, "Tokens guessed ahead and computed."),
            "draft_tokens_kept_total": (engine.draft_tokens_kept, "Of those, as they were chosen."),
            "preemptions_total": (engine.preemptions, "Times that a request gave its blocks up."),
            "engine_failures_total": (engine_failures, "Failures that ended the engine's running requests."),
            "ledger_failures_total": (self.unbooked, "Requests that could not be booked."),
        }
        lines: list[str] = []
        for kind, family in (("gauge", gauges), ("counter", counters)):
            for name, (value, text) in family.items():
                lines += [*_head(name, kind, text), f"finback_{name} {value}"]
        return "\n".join([*lines, *self._labelled(), *self._histograms(), ""])

    def _labelled(self) -> Iterator[str]:
        yield from _head("http_requests_total", "counter", "Responses by route and status.")
        for (route, status), count in sorted(self._requests.items()):
            yield f'finback_http_requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head(
            "tokens_total", "counter", "Tokens of booked requests; cached and reasoning are parts of others."
        )
        for kind in ("prompt", "cached", "reasoning", "output"):
            yield f'finback_tokens_total{{kind="{kind}"}} {self._tokens[kind]}'
        yield from _head("answers_total", "counter", "Answers by how they ended.")
        for reason, count in sorted(self._reasons.items()):
            yield f'finback_answers_total{{finish_reason="{reason}"}} {count}'

    def _histograms(self) -> Iterator[str]:
        yield from _head("queue_time_seconds", "histogram", "From a request's arrival until it was first computed.")
        yield from self._queued.samples("finback_queue_time_seconds")
        yield from _head("time_to_first_token_seconds", "histogram", "From a request's arrival to its first token.")
        yield from self._first_token.samples("finback_time_to_first_token_seconds")
        yield from _head("time_per_output_token_seconds", "histogram", "After the first token, the mean of an answer.")
        yield from self._per_token.samples("finback_time_per_output_token_seconds")


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP finback_{name} {text}", f"# TYPE finback_{name} {kind}"]
