"""Builds of the kernels beside each other, taking turns every few tokens.

    python -m benchmarks.builds MODEL old.so new.so --depth 512
    python -m benchmarks.builds MODEL old.so new.so --depth 512 --prefill --turns 10
    python -m benchmarks.builds MODEL old.so new.so --depth 128 --batch 16

From one run to the next, a shared machine changes its speed by more than most changes of a kernel are worth. So each
build has a process of its own that has the model loaded; they take turns of a few tokens, or of one prompt, and each
turn is compared with the first build's turn beside it. The median of those ratios tells one percent apart.
A build is a copy of the extension module ``_native``, under the Python sources of this checkout, or the ``src`` of
another checkout with its module in ``src/finback``. All run on the same pack, so they must agree on its layout.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import statistics
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.peers import prompt_of

TOKENS_PER_TURN = 6


@dataclass(frozen=True)
class Task:
    """A turn of every build: reading ``batch`` prompts of ``depth`` tokens, or going on with answers to them."""

    model: str
    depth: int
    batch: int
    prefill: bool
    turns: int
    threads: int

    @property
    def answer(self) -> int:
        """Tokens that the first answer may need: it grows while the others read what the cache lacks."""
        return (self.turns + 1) * TOKENS_PER_TURN + 8 * self.batch


def use_build(path: str) -> None:
    """Make ``import finback`` take its kernels from the extension module at ``path``, or all of it from that folder."""
    if Path(path).is_dir():
        sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
        sys.path.insert(0, path)
        return
    spec = importlib.util.spec_from_file_location("finback._native", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not an extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["finback._native"] = module


def run_turns(build: str, task: Task, turns: Connection) -> None:
    """Body of a build's process: for each message a turn, and its seconds as the answer."""
    use_build(build)
    import finback
    from finback.config import Settings
    from finback.engine.request import SamplingParams

    prompts = [prompt_of(task.depth + i)[i:] for i in range(task.batch)]
    # A prompt is read again and again; answers begin together when the cache holds what is before them.
    cache = 0 if task.prefill else 1 << 24
    settings = Settings(prefix_cache_mib=cache, draft_tokens=0, max_requests=task.batch)
    context = task.depth + task.answer + 64
    with finback.load(task.model, threads=task.threads, context=context, settings=settings) as model:

        def begin(length: int) -> None:
            params = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
            for i, prompt in enumerate(prompts):
                model.engine.add(str(i), prompt, params)
            waiting = {str(i) for i in range(task.batch)}
            while waiting:
                waiting -= {output.request_id for output in model.engine.step() if output.tokens}

        begin(1)
        if not task.prefill:
            begin(task.answer)
        turns.send(0.0)
        while turns.recv():
            start = time.perf_counter()
            if task.prefill:
                begin(1)
            else:
                for _ in range(TOKENS_PER_TURN):
                    model.engine.step()
            turns.send(time.perf_counter() - start)


def measure(builds: list[str], task: Task) -> list[list[float]]:
    """Seconds of each build's turns."""
    context = multiprocessing.get_context("spawn")
    ours: list[Connection] = []
    for build in builds:
        here, there = context.Pipe()
        context.Process(target=run_turns, args=(build, task, there), daemon=True).start()
        there.close()  # theirs alone: a build that does not load ends this run, too
        ours.append(here)
        here.recv()
    seconds: list[list[float]] = [[] for _ in builds]
    turns = list(zip(ours, seconds, strict=True))
    for _ in range(task.turns):
        for connection, times in turns:
            connection.send(True)
            times.append(connection.recv())
        turns.reverse()  # who comes second finds the machine in another state: 2 to 3 % were its place's
    for connection in ours:
        connection.send(False)
    return seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("builds", nargs="+", help="modules or src folders; the first is what others are compared with")
    parser.add_argument("--depth", type=int, default=16, help="tokens of the prompt")
    parser.add_argument("--batch", type=int, default=1, help="answers at once, or prompts")
    parser.add_argument("--prefill", action="store_true", help="measure the prompt instead of the answer")
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    task = Task(**{name: value for name, value in vars(arguments).items() if name != "builds"})
    seconds = measure(arguments.builds, task)
    tokens = task.batch * (task.depth if task.prefill else TOKENS_PER_TURN)
    for build, times in zip(arguments.builds, seconds, strict=True):
        ratio = statistics.median(mine / first for mine, first in zip(times, seconds[0], strict=True))
        print(f"{build:30} {tokens / statistics.median(times):8.2f} tokens/s "
              f"(best {tokens / min(times):8.2f})  time against the first {ratio:6.3f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
