"""``finback bench``: how fast a model reads a prompt and writes an answer here, and how near that is to the memory's
limit.

Decode is bound by memory: a step must read the active weights and the cache. ``bandwidth_share`` is what the steps
read over what all cores together could have read in that time, the median of the repeats. A shared machine's memory
changes its speed from one second to the next, so it is measured every few steps.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from finback.cli import bench_serve, options
from finback.errors import InvalidRequest

if TYPE_CHECKING:
    from finback.api import LoadedModel
    from finback.cli.facts import Facts
    from finback.config import Settings
    from finback.engine.engine import Engine

_SEED = 1
_STEPS = 16  # between two looks at memory
_READ_S = 0.1
_COUNT = click.IntRange(min=1)


@dataclass(frozen=True, slots=True)
class Load:
    """What is measured. Decode starts ``depth`` tokens into each of ``batch`` sequences; prefill reads one prompt."""

    prompt: int
    gen: int
    depth: int
    batch: int
    repeats: int

    @property
    def answer(self) -> int:
        """Tokens that a sequence may write: the first to be ready writes on while the others read what the cache does
        not hold of their prompts, and all must go on writing until the clock stops.
        """
        from finback.engine.memory import BLOCK_SIZE
        from finback.engine.pace import LEAST_CHUNK

        return self.gen + 16 + self.batch * (1 + BLOCK_SIZE // LEAST_CHUNK)

    @property
    def context(self) -> int:
        """Tokens that the longest sequence needs."""
        return max(self.depth, 1) + max(self.prompt, self.answer) + 1


class DefaultCommand(click.Group):
    """A group whose command `model` is meant when none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Name the command if the first argument does not."""
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["model", *args])


@click.group(cls=DefaultCommand)
def bench() -> None:
    """Measure a model's speed; `bench serve`: a server's."""


bench.add_command(bench_serve.serve)


@bench.command("model")
@options.model_or_default
@click.option("--prompt", type=_COUNT, default=512, help="Prompt tokens whose reading is timed.")
@click.option("--gen", type=_COUNT, default=64, help="Answer tokens whose writing is timed.")
@click.option("--depth", type=click.IntRange(min=0), default=0, help="Tokens already in the context.")
@click.option("--batch", type=_COUNT, default=1, help="Sequences that are written at once.")
@click.option("--repeats", type=_COUNT, default=5, help="Medians are over so many runs.")
@options.threads
@options.format
@options.json
def bench_model(
    model: str,
    prompt: int,
    gen: int,
    depth: int,
    batch: int,
    repeats: int,
    threads: int | None,
    format: str | None,
    json: bool,
) -> None:
    """Measure prefill and decode speed.

    Decode is also shown as the share of the measured memory bandwidth that it uses. `finback bench serve` measures a
    running server under load instead.
    """
    from finback.cli.models import ensure_here, load
    from finback.cli.output import print_json

    work = Load(prompt, gen, depth, batch, repeats)
    settings = options.settings_of(threads, None, format)
    name = ensure_here(model, settings)
    settings = _fitting(name, work, settings)
    record = measure(name, work, settings, load)
    if json:
        print_json(record)
    else:
        _print(record)


def _fitting(name: str, work: Load, settings: Settings) -> Settings:
    """Settings with room for the work; a load that the model cannot carry is refused before it is loaded."""
    from finback.cli.facts import facts_of
    from finback.hub import resolve

    longest = facts_of(resolve(name, settings), settings).config.max_position_embeddings
    context = work.context
    if context > longest:
        raise InvalidRequest(
            f"the load needs {context} tokens of context, the model has {longest}",
            hint="lower --depth, --prompt, --gen or --batch",
        )
    # All prompts of a batch stay in the cache, so that the sequences can start together. Each step writes one token of
    # each: what guessing gains depends on the text.
    return settings.override(context=context, max_requests=work.batch, prefix_cache_mib=1 << 24, draft_tokens=0)


def measure(name: str, work: Load, settings: Settings, load: Any) -> dict[str, Any]:
    """The record of one benchmark."""
    from finback.cli.facts import facts_of
    from finback.hub import resolve

    facts = facts_of(resolve(name, settings), settings)
    started = time.perf_counter()
    with load(name, settings) as model:
        load_s = time.perf_counter() - started
        timer = _Timer(model, work)
        timer.warm_up()
        prefill = [timer.prefill() for _ in range(work.repeats)]
        decode = [timer.decode() for _ in range(work.repeats)]
        record = _record(facts, model, work, load_s, prefill, decode)
        return record | {"prefill_depth": timer.prefill_depth}


@dataclass(frozen=True, slots=True)
class _Decoded:
    """One repeat. ``readable_bytes``: what memory could have given in its time; ``bandwidths``: as measured."""

    tokens_per_s: float
    readable_bytes: float
    bandwidths: list[float]


class _Timer:
    """Runs requests of random tokens through the engine, as a server would, and reads the clock."""

    def __init__(self, model: LoadedModel, work: Load) -> None:
        self._engine: Engine = model.engine
        self._vocabulary = model.config.vocab_size
        self._work = work
        self._random = random.Random(_SEED)
        self._count = 0

    @property
    def prefill_depth(self) -> int:
        """Where the timed part of the prompt begins: a whole number of steps, since the clock starts between two."""
        step = self._engine.settings.batch_tokens
        total = self._work.depth + self._work.prompt
        return min(-(-self._work.depth // step), (total - 1) // step) * step

    def warm_up(self) -> None:
        """Bring the weights into memory and the processor to its speed; not timed."""
        self._add(self._tokens(min(self._work.prompt, 64)), 4)
        self._finish()

    def prefill(self) -> float:
        """Tokens per second of reading a prompt, up to and with the first token of the answer."""
        total, before = self._work.depth + self._work.prompt, self.prefill_depth
        self._add(self._tokens(total), 1)
        for _ in range(before // self._engine.settings.batch_tokens):
            self._engine.step()
        started = time.perf_counter()
        self._finish()
        return (total - before) / (time.perf_counter() - started)

    def decode(self) -> _Decoded:
        """Writing, over all sequences: a few steps, memory, and so on."""
        from finback import hardware

        prompts = [self._tokens(max(self._work.depth, 1)) for _ in range(self._work.batch)]
        for prompt in prompts:
            self._add(prompt, 1)
        self._finish()
        names = [self._add(prompt, self._work.answer) for prompt in prompts]
        waiting = set(names)
        while waiting:
            waiting -= {output.request_id for output in self._engine.step() if output.tokens}
        written, passed, readable = 0, 0.0, 0.0
        bandwidths = [hardware.read_bandwidth(_READ_S)]
        for begin in range(0, self._work.gen, _STEPS):
            started = time.perf_counter()
            for _ in range(min(_STEPS, self._work.gen - begin)):
                written += sum(len(output.tokens) for output in self._engine.step())
            turn_s = time.perf_counter() - started
            bandwidths.append(hardware.read_bandwidth(_READ_S))
            passed += turn_s
            readable += turn_s * (bandwidths[-2] + bandwidths[-1]) / 2
        for name in names:
            self._engine.abort(name)
        self._finish()
        return _Decoded(written / passed, readable, bandwidths)

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._vocabulary) for _ in range(count)]

    def _add(self, prompt: list[int], answer: int) -> str:
        from finback.engine.request import SamplingParams

        self._count += 1
        name = f"bench-{self._count}"
        self._engine.add(name, prompt, SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True))
        return name

    def _finish(self) -> None:
        while self._engine.has_work:
            for output in self._engine.step():
                if output.error is not None:
                    raise output.error


def _record(
    facts: Facts,
    model: LoadedModel,
    work: Load,
    load_s: float,
    prefill: list[float],
    decode: list[_Decoded],
) -> dict[str, Any]:
    from finback import hardware

    speeds = [run.tokens_per_s for run in decode]
    step_bytes = facts.step_bytes(work.batch, work.depth + work.gen / 2)
    return {
        "model": model.name,
        "path": str(facts.path),
        "prompt": work.prompt,
        "gen": work.gen,
        "depth": work.depth,
        "batch": work.batch,
        "threads": model.settings.threads,
        "repeats": work.repeats,
        "processor": hardware.processor().model,
        "isa": hardware.kernels().isa,
        "load_s": round(load_s, 3),
        "prefill_tokens_per_s": statistics.median(prefill),
        "decode_tokens_per_s": statistics.median(speeds),
        "prefill_runs": prefill,
        "decode_runs": speeds,
        "read_bandwidth_bytes_per_s": statistics.median(b for run in decode for b in run.bandwidths),
        "read_bytes_per_step": step_bytes,
        "bandwidth_share": statistics.median(work.gen * step_bytes / run.readable_bytes for run in decode),
        "peak_memory_bytes": _peak_memory_bytes(),
        "weights_bytes": facts.plan.nbytes,
    }


def _peak_memory_bytes() -> int | None:
    """The most memory that this process had at a time, mapped weights included."""
    try:
        import resource
        import sys
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _print(record: dict[str, Any]) -> None:
    from finback.cli.output import print_facts, rate_text, size_text

    def spread(runs: list[float]) -> str:
        return f"{rate_text(statistics.median(runs))} tokens/s (from {rate_text(min(runs))} to {rate_text(max(runs))})"

    print_facts(
        [
            ("model", f"{record['model']}, {record['threads']} threads, {record['isa']}, {record['processor']}"),
            (
                "prefill",
                f"{spread(record['prefill_runs'])}, {record['prompt']} tokens at depth {record['prefill_depth']}",
            ),
            ("decode", f"{spread(record['decode_runs'])}, batch {record['batch']} at depth {record['depth']}"),
            ("per step", f"{size_text(record['read_bytes_per_step'])} of weights and cache"),
            (
                "bandwidth",
                f"{size_text(record['read_bandwidth_bytes_per_s'])}/s measured; decode uses "
                f"{record['bandwidth_share']:.0%} of it",
            ),
            ("memory", f"{size_text(record['peak_memory_bytes'] or 0)} at the most; {record['repeats']} repeats"),
        ]
    )
