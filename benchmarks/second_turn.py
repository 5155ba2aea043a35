"""Claim: the second turn of a long conversation starts in a fraction of the time of the first, also after a restart.

    python -m benchmarks.second_turn MODEL [--tokens 2000] [--repeats 3]

Times to the first token: of a first turn; of a second turn, which repeats the first turn and its answer and adds a
question; of that second turn in a new engine that finds the snapshots on disk; and of the second turn computed anew.
Prints one CSV row for each repeat. The model's tokens are random, so nothing but the conversation itself is shared.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import finback
from finback.api import LoadedModel
from finback.config import Settings, load_settings
from finback.engine.request import SamplingParams

ANSWER, QUESTION = 64, 30  # tokens


def first_token_s(model: LoadedModel, prompt: list[int], answer: int = 1) -> tuple[float, list[int]]:
    """Seconds until the first token, and the whole answer."""
    began = time.perf_counter()
    model.engine.add("it", prompt, SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True))
    tokens: list[int] = []
    first = 0.0
    while model.engine.has_work:
        for output in model.engine.step():
            first = first or time.perf_counter() - began
            tokens += output.tokens
    return first, tokens


def measure(name: str, tokens: int, settings: Settings, seed: int) -> dict[str, float]:
    """One conversation."""
    drawn = random.Random(seed)
    with finback.load(name, settings=settings) as model:
        vocabulary = model.config.vocab_size
        first_token_s(model, [drawn.randrange(vocabulary) for _ in range(64)])  # weights into memory
        prompt = [drawn.randrange(vocabulary) for _ in range(tokens)]
        first, answer = first_token_s(model, prompt, ANSWER)
        prompt += answer + [drawn.randrange(vocabulary) for _ in range(QUESTION)]
        second, _ = first_token_s(model, prompt)
    with finback.load(name, settings=settings) as model:
        first_token_s(model, [drawn.randrange(vocabulary) for _ in range(64)])
        restarted, _ = first_token_s(model, prompt)
    with finback.load(name, settings=replace(settings, prefix_cache_mib=0)) as model:
        first_token_s(model, [drawn.randrange(vocabulary) for _ in range(64)])
        cold, _ = first_token_s(model, prompt)
    return {
        "tokens": tokens,
        "first_s": first,
        "second_s": second,
        "second_after_restart_s": restarted,
        "second_without_cache_s": cold,
        "second_share": second / first,
        "restart_share": restarted / first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--tokens", type=int, default=2000, help="of the first turn's prompt")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    writer: csv.DictWriter[str] | None = None
    for repeat in range(given.repeats):
        with tempfile.TemporaryDirectory() as folder:
            base = load_settings()
            # The packs stay where they are; only the snapshots are fresh.
            (Path(folder) / "packs").symlink_to(base.home / "packs")
            (Path(folder) / "models").symlink_to(base.home / "models")
            row = measure(given.model, given.tokens, replace(base, home=Path(folder)).for_server(), repeat)
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(row))
            writer.writeheader()
        writer.writerow({name: f"{value:.4g}" for name, value in row.items()})


if __name__ == "__main__":
    main()
