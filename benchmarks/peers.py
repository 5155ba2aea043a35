"""Finback beside llama.cpp: the same file, the same threads, in one run, taking turns.

    python -m benchmarks.peers MODEL.gguf --prompt 512 --gen 64 --rounds 3 --csv benchmarks/results/peers.csv

Each turn is a process of its own, so that neither engine sees the other's threads or memory; turns go A B A B, and
medians are compared. llama.cpp is llama-cpp-python, which must have been built for this processor: install it with
``CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python``.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

ENGINES = ("finback", "llama.cpp")


def prompt_of(length: int) -> list[int]:
    """Token ids that every vocabulary has, without a short period."""
    return [5 + (i * 7919) % 977 for i in range(length)]


def timed(action: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def turn_finback(path: str, prompt: int, gen: int, threads: int) -> dict[str, float]:
    """One turn of Finback, through its Python face: the engine, its scheduler and sampler included."""
    import finback
    from finback.config import Settings
    from finback.engine.request import SamplingParams

    tokens = prompt_of(prompt)
    # The same prompt is read twice, and greedy answers repeat themselves: every token is to be computed, one by one.
    plain = Settings(prefix_cache_mib=0, draft_tokens=0)
    with finback.load(path, threads=threads, context=prompt + gen + 64, settings=plain) as model:
        model.generate(tokens[:8], max_tokens=2, temperature=0.0)
        start = time.perf_counter()
        model.engine.add("bench", tokens, SamplingParams(max_tokens=gen + 1, temperature=0.0, ignore_eos=True))
        while not any(output.tokens for output in model.engine.step()):
            pass
        first = time.perf_counter()
        while model.engine.has_work:
            model.engine.step()
        end = time.perf_counter()
    return {"prefill": prompt / (first - start), "decode": gen / (end - first)}


def turn_llama(path: str, prompt: int, gen: int, threads: int) -> dict[str, float]:
    """One turn of llama.cpp, through llama-cpp-python's evaluation call."""
    from llama_cpp import Llama

    tokens = prompt_of(prompt)
    options = {"n_threads": threads, "n_threads_batch": threads, "n_batch": 512, "verbose": False}
    model = Llama(path, n_ctx=prompt + gen + 64, **options)
    model.eval(tokens[:8])
    model.reset()
    prefill_s = timed(lambda: model.eval(tokens))
    decode_s = timed(lambda: [model.eval([tokens[i % prompt]]) for i in range(gen)])
    return {"prefill": prompt / prefill_s, "decode": gen / decode_s}


def child(arguments: argparse.Namespace) -> None:
    """One turn in this process; prints a line of JSON."""
    turn = turn_finback if arguments.turn == "finback" else turn_llama
    figures = turn(arguments.model, arguments.prompt, arguments.gen, arguments.threads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**figures, "peak_rss_bytes": peak}))


def run_turn(engine: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One turn in a fresh process."""
    options = ["--prompt", arguments.prompt, "--gen", arguments.gen, "--threads", arguments.threads]
    command = [sys.executable, "-m", "benchmarks.peers", arguments.model, "--turn", engine, *map(str, options)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians of each engine over the rounds."""
    turns: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    for _ in range(arguments.rounds):
        for engine in ENGINES:
            turns[engine].append(run_turn(engine, arguments))
            print(engine, {name: round(value, 2) for name, value in turns[engine][-1].items()}, file=sys.stderr)
    keys = ("prefill", "decode", "peak_rss_bytes")
    return {engine: {key: statistics.median(t[key] for t in turns[engine]) for key in keys} for engine in ENGINES}


def append_csv(path: Path, arguments: argparse.Namespace, medians: dict[str, dict[str, float]]) -> None:
    """One row for each engine, after a header if the file is new."""
    from finback import hardware, kernels  # here, so that llama.cpp's turns load nothing of Finback

    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["date", "processor", "isa", "model", "threads", "prompt", "gen", "engine",
                             "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes"])  # fmt: skip
        for engine, figures in medians.items():
            shape = [arguments.threads, arguments.prompt, arguments.gen]
            speeds = [f"{figures['prefill']:.2f}", f"{figures['decode']:.2f}", int(figures["peak_rss_bytes"])]
            machine = [date.today(), hardware.processor().model, kernels.isa()]
            writer.writerow([*machine, Path(arguments.model).stem, *shape, engine, *speeds])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--gen", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--turn", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        child(arguments)
        return
    medians = compare(arguments)
    for key in ("prefill", "decode"):
        ours, theirs = (medians[engine][key] for engine in ENGINES)
        print(f"{key}: finback {ours:.2f} t/s, llama.cpp {theirs:.2f} t/s, ratio {ours / theirs:.2f}")
    if arguments.csv:
        append_csv(arguments.csv, arguments, medians)


if __name__ == "__main__":
    main()
