"""Claim: while a long prompt is read, running answers take at most twice as long per token.

    python -m benchmarks.long_prompt MODEL [--answers 8] [--prompt 4000]

Some answers run; their times between tokens are taken alone, while one more request reads a long prompt, and alone
again, since what they attend to has grown meanwhile. Prints one CSV row: means and percentiles, the ratios to the time
before and to the middle of before and after, and how long the prompt took beside the answers and by itself.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import finback
from finback.engine.engine import Engine
from finback.engine.request import SamplingParams

DEPTH, ALONE = 200, 60  # tokens of each running context at the start; tokens that are timed without the prompt


class Stopwatch:
    """Steps an engine and notes when each request's tokens came."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.times: dict[str, list[float]] = defaultdict(list)

    def run(self, until: Callable[[], bool]) -> tuple[float, float]:
        """Step until it is so; returns when that began and ended."""
        began = time.perf_counter()
        while not until():
            for output in self._engine.step():
                self.times[output.request_id] += [time.perf_counter()] * len(output.tokens)
        return began, time.perf_counter()

    def gaps_ms(self, names: list[str], span: tuple[float, float]) -> list[float]:
        """Milliseconds between tokens that came within a span of time, sorted."""
        pairs = (pair for name in names for pair in zip(self.times[name], self.times[name][1:], strict=False))
        return sorted((b - a) * 1000 for a, b in pairs if span[0] <= a and b <= span[1])


def measure(engine: Engine, answers: int, prompt: int, seed: int) -> dict[str, float]:
    """The three phases, then the prompt by itself."""
    drawn = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [drawn.randrange(engine.config.vocab_size) for _ in range(count)]

    watch = Stopwatch(engine)
    names = [f"answer-{i}" for i in range(answers)]
    for i, name in enumerate(names):
        engine.add(name, tokens(DEPTH), SamplingParams(seed=i, ignore_eos=True))
    watch.run(lambda: all(len(watch.times[name]) >= 10 for name in names))

    def alone() -> list[float]:
        count = len(watch.times[names[0]]) + ALONE
        return watch.gaps_ms(names, watch.run(lambda: len(watch.times[names[0]]) >= count))

    before = alone()
    engine.add("prompt", tokens(prompt), SamplingParams(max_tokens=1))
    span = watch.run(lambda: bool(watch.times["prompt"]))
    beside = watch.gaps_ms(names, span)
    after = alone()
    for name in names:
        engine.abort(name)
    engine.add("by itself", tokens(prompt), SamplingParams(max_tokens=1))
    itself = watch.run(lambda: bool(watch.times["by itself"]))
    return {
        "answers": answers,
        "prompt": prompt,
        "before_mean_ms": statistics.mean(before),
        "before_p95_ms": before[int(len(before) * 0.95)],
        "beside_mean_ms": statistics.mean(beside),
        "beside_p95_ms": beside[int(len(beside) * 0.95)],
        "after_mean_ms": statistics.mean(after),
        "ratio_to_before": statistics.mean(beside) / statistics.mean(before),
        "ratio_to_middle": 2 * statistics.mean(beside) / (statistics.mean(before) + statistics.mean(after)),
        "prompt_beside_s": span[1] - span[0],
        "prompt_by_itself_s": itself[1] - itself[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=4000)
    given = parser.parse_args()
    with finback.load(given.model) as model:
        row = measure(model.engine, given.answers, given.prompt, seed=0)
    writer = csv.DictWriter(sys.stdout, list(row))
    writer.writeheader()
    writer.writerow({name: f"{value:.4g}" for name, value in row.items()})


if __name__ == "__main__":
    main()
