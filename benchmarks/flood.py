"""Claim: one key that floods the server raises another key's p95 queue time at most twofold.

    python -m benchmarks.flood MODEL [--seconds 60]

A guest asks now and then. The other tenant first asks for as much as half of what the machine can do, then keeps its
whole queue full. Prints a CSV row for each: what the guest waited until it was first computed and until its first
token, and how fast everybody's answers were written.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import sys
import time
from collections.abc import Callable

import finback
from finback.engine.engine import Engine
from finback.engine.request import SamplingParams
from finback.errors import QueueFull
from finback.server.load import percentiles

PROMPT, ANSWER = 100, 100  # tokens of everybody's requests
PAUSE_S = 0.7  # between two requests of the guest, in the mean


class Visitors:
    """Puts requests into an engine as time goes by, and notes when the guest's were first computed and answered."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine = engine
        self._drawn = random.Random(seed)
        self._ids = itertools.count()
        self.unfinished: set[str] = set()
        self._came: dict[str, float] = {}  # the guest's that have no token yet
        self.queued_s: list[float] = []
        self.first_s: list[float] = []
        self.written = 0  # tokens, of everybody

    def come(self, tenant: str, at: float) -> None:
        """One request of ``tenant``, which came at a moment that may lie within the step before."""
        name = f"{tenant}-{next(self._ids)}"
        prompt = [self._drawn.randrange(self._engine.config.vocab_size) for _ in range(PROMPT)]
        params = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
        self._engine.add(name, prompt, params, tenant=tenant)
        self.unfinished.add(name)
        if tenant == "guest":
            self._came[name] = at

    def step(self) -> None:
        """One step of the engine."""
        for output in self._engine.step():
            self.written += len(output.tokens)
            if output.finish_reason:
                self.unfinished.discard(output.request_id)
            came = self._came.pop(output.request_id, None) if output.tokens else None
            if came is not None and output.started is not None:
                self.queued_s.append(max(0.0, output.started - came))
                self.first_s.append(time.monotonic() - came)

    def pause(self, mean_s: float) -> float:
        """A random one."""
        return self._drawn.expovariate(1 / mean_s)


def stay(engine: Engine, seconds: float, seed: int, host: Callable[[Visitors, float], None]) -> dict[str, float]:
    """The guest's visits over some time, while ``host`` adds what the other tenant asks before each step."""
    visitors = Visitors(engine, seed)
    began = time.monotonic()
    next_guest = began + 2 * PAUSE_S
    while (now := time.monotonic()) < began + seconds:
        host(visitors, now)
        while next_guest <= now:
            visitors.come("guest", next_guest)
            next_guest += visitors.pause(PAUSE_S)
        if engine.has_work:
            visitors.step()
    lasted = time.monotonic() - began
    for name in visitors.unfinished:
        engine.abort(name)
    engine.step()
    queued, first = percentiles(visitors.queued_s), percentiles(visitors.first_s)
    assert queued
    assert first
    return {
        "guests": len(visitors.queued_s),
        "queued_p50_ms": queued["p50"] * 1000,
        "queued_p95_ms": queued["p95"] * 1000,
        "first_token_p50_ms": first["p50"] * 1000,
        "first_token_p95_ms": first["p95"] * 1000,
        "written_per_s": visitors.written / lasted,
    }


def flood(visitors: Visitors, now: float) -> None:
    """Ask until the queue is full."""
    try:
        while True:
            visitors.come("host", now)
    except QueueFull:
        pass


class Steady:
    """A tenant that asks at a rate, at random moments."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._next = 0.0

    def __call__(self, visitors: Visitors, now: float) -> None:
        self._next = self._next or now
        while self._next <= now:
            visitors.come("host", now)
            self._next += visitors.pause(1 / self._per_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each part")
    given = parser.parse_args()
    with finback.load(given.model) as model:
        warm = stay(model.engine, given.seconds / 2, 0, flood)
        capacity = warm["written_per_s"] / ANSWER
        rows = {
            "half": stay(model.engine, given.seconds, 1, Steady(capacity / 2)),
            "flood": stay(model.engine, given.seconds, 1, flood),
        }
    writer = csv.DictWriter(sys.stdout, ["host", *warm])
    writer.writeheader()
    for name, row in rows.items():
        writer.writerow({"host": name, **{key: f"{value:.4g}" for key, value in row.items()}})


if __name__ == "__main__":
    main()
