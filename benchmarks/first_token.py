"""Claim: a one-line prompt is answered within a fraction of a second of the command, model loading included.

    python -m benchmarks.first_token MODEL [--repeats 9] [--prompt TEXT]

Runs `finback run` in processes of its own and prints one CSV row of medians: the interpreter alone; all imports, as
``-X importtime`` adds them up; the time from starting the command to the first byte of the answer; to its end. One run
before them warms the disk's cache and packs the weights. Python may use bytecode that is there, so compile it first
where the environment keeps Python from writing it (``python -m compileall -q src/finback``).
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import subprocess
import sys
import time

TOKENS = 8  # of the answer
_SELF_US = re.compile(r"^import time:\s+(\d+) \|", re.MULTILINE)


def interpreter_s() -> float:
    """Seconds that Python takes to start and end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return time.perf_counter() - began


def imports_s(command: list[str]) -> float:
    """Seconds that a run spends importing; measuring it makes it a little slower."""
    python, *rest = command
    done = subprocess.run(
        [python, "-X", "importtime", *rest], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return sum(map(int, _SELF_US.findall(done.stderr))) / 1e6


def answer_s(command: list[str]) -> tuple[float, float]:
    """Seconds to the first byte of the answer, and to the end of the program."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout
        said = process.stdout.read(1)
        first = time.perf_counter() - began
        process.stdout.read()
    if not said or process.returncode:
        raise SystemExit(f"the command failed: {' '.join(command)}")
    return first, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--prompt", default="Why is the sky blue?")
    given = parser.parse_args()
    command = [sys.executable, "-m", "finback", "run", "--model", given.model, "-n", str(TOKENS), given.prompt]
    answer_s(command)
    answers = [answer_s(command) for _ in range(given.repeats)]
    row = {
        "interpreter_s": statistics.median(interpreter_s() for _ in range(given.repeats)),
        "imports_s": statistics.median(imports_s(command) for _ in range(given.repeats)),
        "first_token_s": statistics.median(first for first, _ in answers),
        "first_token_least_s": min(first for first, _ in answers),
        "end_s": statistics.median(end for _, end in answers),
    }
    writer = csv.DictWriter(sys.stdout, list(row))
    writer.writeheader()
    writer.writerow({name: f"{value:.3f}" for name, value in row.items()})


if __name__ == "__main__":
    main()
