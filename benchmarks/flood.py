"""Claim: one key that floods the server raises another key's p95 queue time at most twofold.

    python -m benchmarks.flood MODEL [--seconds 60]

A guest asks now and then. The other tenant first asks for as much as half of what the machine can do, then keeps its
whole queue full. Prints a CSV row for each: what the guest waited until it was first computed and until its first
token, and how fast everybody's answers were written.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import time
from collections import deque

import finback
from finback.engine.engine import Engine
from finback.engine.request import SamplingParams
from finback.errors import QueueFull
from finback.server.load import percentiles, poisson

PROMPT, ANSWER = 100, 100  # tokens of everybody's requests
PAUSE_S = 0.7  # between two requests of the guest, in the mean


class Visitors:
    """Puts requests into an engine, and notes when the guest's were first computed and answered."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine = engine
        self._drawn = random.Random(seed)
        self._came: dict[str, float] = {}  # the guest's that have no token yet
        self.names: list[str] = []
        self.queued_s: list[float] = []
        self.first_s: list[float] = []
        self.written = 0  # tokens, of everybody

    def come(self, tenant: str, at: float) -> None:
        """One request of ``tenant``, which came at a moment that may lie within the step before."""
        name = f"{tenant}-{len(self.names)}"
        prompt = [self._drawn.randrange(self._engine.config.vocab_size) for _ in range(PROMPT)]
        self._engine.add(name, prompt, SamplingParams(max_tokens=ANSWER, ignore_eos=True), tenant=tenant)
        self.names.append(name)
        if tenant == "guest":
            self._came[name] = at

    def flood(self, now: float) -> None:
        """The host asks until its queue is full."""
        try:
            while True:
                self.come("host", now)
        except QueueFull:
            pass

    def step(self) -> None:
        """One step of the engine."""
        for output in self._engine.step():
            self.written += len(output.tokens)
            came = self._came.pop(output.request_id, None) if output.tokens else None
            if came is not None and output.started is not None:
                self.queued_s.append(max(0.0, output.started - came))
                self.first_s.append(time.monotonic() - came)


def arrivals(tenant: str, per_s: float, seconds: float, seed: int) -> list[tuple[float, str]]:
    """When a tenant asks within some time, at random moments."""
    asks = poisson(int(2 * seconds * per_s) + 10, per_s, PROMPT, ANSWER, seed)
    return [(ask.at_s, tenant) for ask in asks if ask.at_s < seconds]


def stay(engine: Engine, seconds: float, seed: int, host_per_s: float | None) -> dict[str, float]:
    """The guest's visits over some time, beside a host that asks at a rate; None: that floods."""
    visitors = Visitors(engine, seed)
    coming = arrivals("guest", 1 / PAUSE_S, seconds, seed)
    if host_per_s is not None:
        coming = sorted(coming + arrivals("host", host_per_s, seconds, seed + 1))
    due = deque(coming)
    began = time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        if host_per_s is None:
            visitors.flood(now)
        while due and began + due[0][0] <= now:
            at_s, tenant = due.popleft()
            visitors.come(tenant, began + at_s)
        if engine.has_work:
            visitors.step()
    lasted = time.monotonic() - began
    for name in visitors.names:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each part")
    given = parser.parse_args()
    with finback.load(given.model) as model:
        warm = stay(model.engine, given.seconds / 2, 0, None)
        capacity = warm["written_per_s"] / ANSWER
        rows = {
            "half": stay(model.engine, given.seconds, 1, capacity / 2),
            "flood": stay(model.engine, given.seconds, 1, None),
        }
    writer = csv.DictWriter(sys.stdout, ["host", *warm])
    writer.writeheader()
    for name, row in rows.items():
        writer.writerow({"host": name, **{key: f"{value:.4g}" for key, value in row.items()}})


if __name__ == "__main__":
    main()
