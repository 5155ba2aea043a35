"""Each product kernel beside the two ceilings of this machine: reading memory, and multiplying bytes.

    python -m benchmarks.kernels --threads 2 --csv benchmarks/results/kernels.csv
    python -m benchmarks.kernels --formats q4_0 q4_k --rows 1 16

A product with few rows (tokens) is bound by reading its weight, one with many by multiplying. So each line gives the
bytes of weight read per second and the multiply-adds per second, as shares of the ceilings measured in the same run.
Weights are many times the last-level cache and take turns, as the layers of a model do.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from datetime import date
from pathlib import Path

import numpy as np

from finback import hardware, kernels
from finback.kernels import Matrix

FORMATS = ("q4_0", "q4_1", "q4_k", "q6_k", "q8_0", "mxfp4", "f8_e4m3", "bf16")
ROWS, COLS = 2048, 2048  # of one weight
EXPERTS, CHOSEN, INNER = 64, 6, 1408  # DeepSeek-V2-Lite's routed experts over COLS
POOL_BYTES = 512 << 20
ROUND_S = 0.4


@dataclass(frozen=True, slots=True)
class Line:
    """One kernel's figures: medians over rounds."""

    kernel: str
    format: str
    rows: int
    microseconds: float
    gigabytes_per_s: float
    bandwidth_share: float
    gigamacs_per_s: float
    int8_share: float


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes per second that all threads read together; int8 multiply-adds per second that they do in registers."""

    bandwidth: float
    int8_macs: float


def random_matrix(format: str, rows: int, cols: int, experts: int = 1) -> Matrix:
    """Bytes that are middling codes and scales in every format: subnormal or infinite numbers would cost extra time."""
    size = kernels.packed_bytes(format, rows, cols, experts)
    data = np.random.default_rng(0).integers(0x38, 0x40, size, np.uint8)
    return Matrix(format, rows, cols, data, experts)


def linear_cases(format: str, rows: int) -> tuple[list[Callable[[], object]], int, int]:
    """Calls that take turns; weight bytes and multiply-adds of each."""
    nbytes = kernels.packed_bytes(format, ROWS, COLS)
    x = np.random.default_rng(1).normal(size=(rows, COLS)).astype(np.float32)
    weights = [random_matrix(format, ROWS, COLS) for _ in range(POOL_BYTES // nbytes)]
    return [lambda w=w: kernels.linear(x, [w]) for w in weights], nbytes, rows * ROWS * COLS


def moe_cases(format: str, rows: int) -> tuple[list[Callable[[], object]], int, int]:
    """One layer's routed experts, every expert equally likely."""
    gate, up = (random_matrix(format, INNER, COLS, EXPERTS) for _ in range(2))
    down_format = format if INNER % 256 == 0 or not format.endswith("_k") else "q8_0"
    down = random_matrix(down_format, COLS, INNER, EXPERTS)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, COLS)).astype(np.float32)
    share = np.full((rows, CHOSEN), 1 / CHOSEN, np.float32)
    turns = [np.stack([rng.permutation(EXPERTS)[:CHOSEN] for _ in range(rows)]).astype(np.int32) for _ in range(20)]
    used = statistics.mean(len(np.unique(ids)) for ids in turns)
    nbytes = round(used / EXPERTS * (gate.nbytes + up.nbytes + down.nbytes))
    calls = [lambda ids=ids: kernels.moe(x, ids, share, gate, up, down) for ids in turns]
    return calls, nbytes, rows * CHOSEN * 3 * INNER * COLS


def seconds_per_call(calls: list[Callable[[], object]], rounds: int) -> float:
    """Median over the rounds of the mean over calls that take turns."""
    turn = 0
    means = []
    for _ in range(rounds + 1):
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < ROUND_S:
            calls[turn % len(calls)]()
            turn, count = turn + 1, count + 1
        means.append((time.perf_counter() - begin) / count)
    return statistics.median(means[1:])


def lines(arguments: argparse.Namespace, ceilings: Ceilings) -> Iterator[Line]:
    """All measurements, each as soon as it is there."""
    for format in arguments.formats:
        for kernel, cases in (("linear", linear_cases), ("moe", moe_cases)):
            if kernel not in arguments.kernels:
                continue
            for rows in arguments.rows:
                calls, nbytes, macs = cases(format, rows)
                seconds = seconds_per_call(calls, arguments.rounds)
                reads, products = nbytes / seconds, macs / seconds
                yield Line(kernel, format, rows, seconds * 1e6, reads / 1e9, reads / ceilings.bandwidth,
                           products / 1e9, products / ceilings.int8_macs)  # fmt: skip


def append_csv(path: Path, threads: int, measured: list[Line]) -> None:
    """One row for each line, after a header if the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["date", "processor", "isa", "threads", *(f.name for f in fields(Line))])
        for line in measured:
            cells = [f"{value:.4g}" if isinstance(value, float) else value for value in astuple(line)]
            writer.writerow([date.today(), hardware.processor().model, kernels.isa(), threads, *cells])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--kernels", nargs="+", default=("linear", "moe"), choices=("linear", "moe"))
    parser.add_argument("--rows", nargs="+", type=int, default=(1, 4, 16, 512), help="tokens in a call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    kernels.set_threads(arguments.threads)
    ceilings = Ceilings(hardware.read_bandwidth(1.0), kernels.int8_rate(0.5))
    print(f"ceilings: {ceilings.bandwidth / 1e9:.1f} GB/s, {ceilings.int8_macs / 1e9:.0f} G multiply-adds/s")
    measured = []
    for line in lines(arguments, ceilings):
        measured.append(line)
        print(f"{line.kernel:8} {line.format:8} {line.rows:5} {line.microseconds:10.0f} us "
              f"{line.gigabytes_per_s:6.1f} GB/s ({line.bandwidth_share:4.0%}) "
              f"{line.gigamacs_per_s:7.1f} GMAC/s ({line.int8_share:4.0%})", flush=True)  # fmt: skip
    if arguments.csv:
        append_csv(arguments.csv, arguments.threads, measured)


if __name__ == "__main__":
    main()
