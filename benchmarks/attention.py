"""What attention, norms and choices cost by themselves: time, arithmetic and bytes of each kernel at real geometries.

    python -m benchmarks.attention --threads 2 --csv benchmarks/results/attention.csv

Each case is called for half a second or more and the fastest call counts, because on a shared machine the rest is other
people's work. ``gflops`` counts two operations per multiply-add of the two matrix products, without the softmax;
``gbytes_per_s`` counts each cached key and value once. Decoding cases walk over several caches that together are larger
than the processor's own, so that keys come from memory as they do in a real step.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finback import kernels

BLOCK_SIZE = 64
COLD_BYTES = 96 << 20  # decoding walks over at least this much cache


@dataclass(frozen=True)
class Case:
    """One measurement: what ran, its cost per call in multiply-adds and bytes, and the call (given its turn)."""

    kernel: str
    shape: str
    macs: float
    bytes: float
    call: Callable[[int], Any]


@dataclass(frozen=True)
class Result:
    """A line of the report."""

    kernel: str
    shape: str
    threads: int
    microseconds: float
    gflops: float
    gbytes_per_s: float


def normal(*shape: int) -> NDArray[np.float32]:
    """Standard normal float32 numbers."""
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def paging(sequences: int, rows: NDArray[np.int32], positions: NDArray[np.int32]) -> dict[str, Any]:
    """Shuffled blocks for sequences that reach to the largest position."""
    blocks = -(-(int(positions.max()) + 1) // BLOCK_SIZE)
    tables = np.random.default_rng(2).permutation(sequences * blocks).reshape(sequences, blocks)
    return {"block_tables": tables.astype(np.int32), "seq_ids": rows, "positions": positions}


def cache(blocks: int, *width: int, dtype: Any) -> NDArray[Any]:
    """A cache of plausible numbers."""
    made = np.empty((blocks, BLOCK_SIZE, *width), dtype)
    slots = np.arange(BLOCK_SIZE)
    for block in made:
        kernels.store_rows(block[None], normal(BLOCK_SIZE, *width), slots)
    return made


def layers(bytes_per_layer: int) -> int:
    """How many caches make a walk that the processor's cache cannot hold."""
    return max(1, -(-COLD_BYTES // bytes_per_layer))


def gqa_decode(name: str, heads: int, kv_heads: int, width: int, context: int, sequences: int) -> Case:
    """One new token in each of several sequences."""
    blocks = sequences * -(-context // BLOCK_SIZE)
    size = 2 * blocks * BLOCK_SIZE * kv_heads * width * 2
    pairs = [[cache(blocks, kv_heads, width, dtype=np.float16) for _ in "kv"] for _ in range(layers(size))]
    q = normal(sequences, heads, width)
    where = paging(sequences, np.arange(sequences, dtype=np.int32), np.full(sequences, context - 1, np.int32))
    macs = 2.0 * sequences * heads * width * context
    return Case(
        "attention", f"{name} decode {sequences} x {context}", macs, size,
        lambda turn: kernels.attention(q, *pairs[turn % len(pairs)], **where, scale=width**-0.5),
    )  # fmt: skip


def gqa_prefill(name: str, heads: int, kv_heads: int, width: int, context: int, tokens: int) -> Case:
    """The last ``tokens`` of a prompt."""
    blocks = -(-context // BLOCK_SIZE)
    k, v = (cache(blocks, kv_heads, width, dtype=np.float16) for _ in "kv")
    q = normal(tokens, heads, width)
    positions = np.arange(context - tokens, context, dtype=np.int32)
    where = paging(1, np.zeros(tokens, np.int32), positions)
    macs = 2.0 * heads * width * float(positions.sum() + tokens)
    return Case(
        "attention", f"{name} prefill {tokens} of {context}", macs, float(k.nbytes + v.nbytes),
        lambda turn: kernels.attention(q, k, v, **where, scale=width**-0.5),
    )  # fmt: skip


def mla_decode(name: str, heads: int, context: int, sequences: int) -> Case:
    """One new token in each of several sequences, absorbed form."""
    blocks = sequences * -(-context // BLOCK_SIZE)
    size = blocks * BLOCK_SIZE * 576 * 2
    caches = [cache(blocks, 576, dtype=np.uint16) for _ in range(layers(size))]
    q_latent, q_rope = normal(sequences, heads, 512), normal(sequences, heads, 64)
    where = paging(sequences, np.arange(sequences, dtype=np.int32), np.full(sequences, context - 1, np.int32))
    macs = float(sequences * heads * context * (576 + 512))
    return Case(
        "mla_attention", f"{name} decode {sequences} x {context}", macs, size,
        lambda turn: kernels.mla_attention(q_latent, q_rope, caches[turn % len(caches)], **where, scale=0.07),
    )  # fmt: skip


def mla_prefill(name: str, heads: int, context: int, tokens: int) -> Case:
    """The last ``tokens`` of a prompt, expanded form."""
    q = normal(tokens, heads, 192)
    k_nope, k_rope, v = normal(context, heads, 128), normal(context, 64), normal(context, heads, 128)
    first = context - tokens
    macs = heads * (192 + 128) * (tokens * first + tokens * (tokens + 1) / 2)
    return Case(
        "mla_prefill", f"{name} prefill {tokens} of {context}", macs, float(k_nope.nbytes + k_rope.nbytes + v.nbytes),
        lambda turn: kernels.mla_prefill(q, k_nope, k_rope, v, first_position=first, scale=0.07),
    )  # fmt: skip


def choices(vocab: int) -> Iterator[Case]:
    """Drawing from a large vocabulary, flat and peaked."""
    for name, spread in (("peaked", 4.0), ("flat", 0.5)):
        logits = normal(vocab) * np.float32(spread)
        for label, top_k, top_p in (("all", 0, 1.0), ("top_p 0.95", 0, 0.95), ("top_k 40", 40, 1.0)):
            yield Case(
                "sample", f"{vocab} {name} {label}", 0.0, float(logits.nbytes),
                lambda turn, x=logits, k=top_k, p=top_p: kernels.sample(
                    x, temperature=0.6, top_k=k, top_p=p, min_p=0.0, uniform=turn * 0.618 % 1
                ),
            )  # fmt: skip
    logits = normal(vocab)
    yield Case(
        "top_logprobs", f"{vocab} k 20", 0.0, float(logits.nbytes), lambda turn: kernels.top_logprobs(logits, 20)
    )


def small_ones() -> Iterator[Case]:
    """Kernels whose cost is mostly the call."""
    for tokens in (1, 512):
        x, weight = normal(tokens, 2048), normal(2048)
        yield Case(
            "rms_norm", f"{tokens} x 2048", 0.0, 2.0 * x.nbytes, lambda _, x=x, w=weight: kernels.rms_norm(x, w, 1e-6)
        )
        for interleaved in (False, True):
            y, angle = normal(tokens, 16, 128), normal(tokens, 64)
            yield Case(
                "rope", f"{tokens} x 16 x 128 {'pairs' if interleaved else 'halves'}", 0.0, 2.0 * y.nbytes,
                lambda _, y=y, a=angle, i=interleaved: kernels.rope(y, a / 9, a / 9, interleaved=i),
            )  # fmt: skip
        logits = normal(tokens, 64)
        yield Case("route", f"{tokens} x 64 top 6", 0.0, float(logits.nbytes), lambda _, x=logits: kernels.route(
            x, bias=None, scoring="softmax", top_k=6, groups=1, top_groups=1, group_rule="none", normalize=False,
            scale=1.0,
        ))  # fmt: skip
    values, slots = normal(512, 576), np.arange(512)
    latents = np.zeros((8, 64, 576), np.uint16)
    yield Case(
        "store_rows", "512 x 576 bf16", 0.0, 1.5 * values.nbytes, lambda _: kernels.store_rows(latents, values, slots)
    )
    yield Case("load_rows", "512 x 576 bf16", 0.0, 1.5 * values.nbytes, lambda _: kernels.load_rows(latents, slots))


def cases(contexts: list[int]) -> Iterator[Case]:
    """All measurements, made one at a time because the caches are large."""
    for context in contexts:
        yield gqa_decode("Qwen-1.5B", 12, 2, 128, context, 1)
        yield gqa_decode("SmolLM2-135M", 9, 3, 64, context, 1)
        yield gqa_decode("Llama-8B", 32, 8, 128, context, 1)
        yield mla_decode("V2-Lite", 16, context, 1)
        yield mla_decode("V3", 128, context, 1)
        yield gqa_prefill("Qwen-1.5B", 12, 2, 128, context, 512)
        yield gqa_prefill("SmolLM2-135M", 9, 3, 64, context, 512)
        yield mla_prefill("V2-Lite", 16, context, 512)
    yield gqa_decode("Qwen-1.5B", 12, 2, 128, 192, 16)
    yield mla_decode("V2-Lite", 16, 192, 16)
    yield from choices(151_936)
    yield from small_ones()


def measure(case: Case, threads: int, seconds: float) -> Result:
    """The fastest of many calls."""
    case.call(0)
    end, best, turn = time.perf_counter() + seconds, float("inf"), 0
    while turn < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        case.call(turn)
        best, turn = min(best, time.perf_counter() - start), turn + 1
    return Result(
        case.kernel, case.shape, threads, round(best * 1e6, 1), round(2e-9 * case.macs / best, 1),
        round(1e-9 * case.bytes / best, 2),
    )  # fmt: skip


def main(argv: list[str]) -> None:
    """Measure, print, and append to the CSV if one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="per case")
    parser.add_argument("--contexts", type=int, nargs="*", default=[512, 4096, 16384])
    parser.add_argument("--only", default="", help="kernels or shapes that contain this")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args(argv)
    kernels.set_threads(options.threads)
    results = []
    for case in cases(options.contexts):
        if options.only in f"{case.kernel} {case.shape}":
            results.append(measure(case, options.threads, options.seconds))
            print(*asdict(results[-1]).values(), sep="\t", flush=True)
    if options.csv and results:
        append(options.csv, results)


def append(path: Path, results: list[Result]) -> None:
    """Add lines, with the machine's name in front, under a header if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["machine", "isa", *asdict(results[0])])
        writer.writerows(
            [platform.processor() or platform.machine(), kernels.isa(), *asdict(r).values()] for r in results
        )


if __name__ == "__main__":
    main(sys.argv[1:])
