"""Mutated model files through the whole load path: each must end in a typed error or in a model that answers.

    python -m tests.weights.fuzz --mutations 10000          that many of GGUF files and as many of safetensors folders
    python -m tests.weights.fuzz --only gguf:1234           one mutation again; its files are kept
    python -m tests.weights.fuzz --stage headers            stop after the headers (or after: config, bind)

A mutation is known by its kind, number and seed. A failure is an untyped exception, a warning, an answer that is not
finite numbers of the right shape, more than a second of processor time, or memory beyond what sound models need. When
the process itself crashes or hangs, the last line of output names the mutation, and its files stay in the folder that
the first line names.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finback.errors import FinbackError
from finback.weights.checkpoint import Checkpoint, open_checkpoint
from tests.weights.mutate import mutate_bytes, mutate_gguf, mutate_json, mutate_safetensors_header, pick
from tests.weights.tiny import tiny_gguf, write_tiny_folder
from tests.weights.writers import write_gguf, write_gguf_split

KINDS = ("gguf", "safetensors")
STAGES = ("headers", "config", "bind", "model")
LIMIT_S = 1.0
HANG_S = 30.0
MEMORY_BYTES = 1 << 30  # peak beyond the start; generous, since packing keeps scratch space
NARROWER = {3: "q8", 6: "q4"}  # by the last digit of a mutation's number
NARROWER_FACTOR = 4  # the search for scales alone takes half a second under the sanitizers
TOKENS = [1, 40, 41, 42, 5]
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}


@dataclass(frozen=True)
class Sample:
    """A sound model: its files, where each header ends, and for GGUF what it was written from."""

    path: Path
    files: Mapping[str, bytes]
    focus: Mapping[str, int]
    parts: tuple[dict[str, Any], dict[str, Any]] | None = None


@dataclass
class Tally:
    """What came out."""

    outcomes: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # the first mutation of each outcome
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


# --- sound models


def gguf_samples(folder: Path) -> Iterator[Sample]:
    """Every family, the common formats, a split."""
    wanted: tuple[tuple[str, dict[str, Any]], ...] = (
        ("llama", {"format": "F32"}),
        ("llama", {"format": "Q4_0"}),
        ("llama", {"format": "Q4_K", **WIDE}),
        ("llama", {"format": "Q6_K", **WIDE}),
        ("qwen2", {"format": "Q8_0"}),
        ("qwen3", {"format": "Q5_1"}),
        ("deepseek_v2_lite", {"format": "Q4_1", "old_mla": True}),
        ("deepseek_v2", {"format": "MXFP4"}),
        ("deepseek_v3", {"format": "BF16"}),
        ("deepseek_v3", {"format": "Q5_0", "num_hidden_layers": 2}),
    )
    for number, (family, options) in enumerate(wanted):
        parts = tiny_gguf(family, **options)
        home = folder / f"gguf{number}"
        home.mkdir(parents=True)
        yield _sample(write_gguf(home / "model.gguf", *parts), parts)
    home = folder / "split"
    home.mkdir()
    yield _sample(write_gguf_split(home, "model", *tiny_gguf("deepseek_v3"), parts=3)[0])


def safetensors_samples(folder: Path) -> Iterator[Sample]:
    """Every family, the published types, one file and shards."""
    wanted: tuple[tuple[str, dict[str, Any]], ...] = (
        ("llama", {"dtype": "F32"}),
        ("qwen2", {"dtype": "BF16", "shards": 2}),
        ("qwen3", {"dtype": "F16"}),
        ("deepseek_v2_lite", {"dtype": "BF16"}),
        ("deepseek_v2", {"dtype": "F32", "shards": 2, "num_hidden_layers": 2}),
        ("deepseek_v3", {"dtype": "F8", "shards": 3}),
    )
    for number, (family, options) in enumerate(wanted):
        yield _sample(write_tiny_folder(folder / f"safetensors{number}", family, **options))


def _sample(path: Path, parts: tuple[dict[str, Any], dict[str, Any]] | None = None) -> Sample:
    files = {file.name: file.read_bytes() for file in sorted(_home(path).iterdir())}
    focus = {name: len(data) for name, data in files.items()}
    for tensor in open_checkpoint(path).tensors.values():
        focus[tensor.path.name] = min(focus[tensor.path.name], tensor.offset)
    return Sample(path, files, focus, parts)


# --- one mutation


def mutated(sample: Sample, rng: np.random.Generator, scratch: Path) -> dict[str, bytes]:
    """The files that change."""
    if sample.parts is not None and rng.random() < 0.4:
        changed = write_gguf(scratch / "mutated", *mutate_gguf(*sample.parts, rng))
        return {sample.path.name: changed.read_bytes()}
    name = pick(rng, list(sample.files))
    data = sample.files[name]
    if name.endswith(".json") and rng.random() < 0.6:
        return {name: json.dumps(mutate_json(json.loads(data), rng)).encode()}
    if name.endswith(".safetensors") and rng.random() < 0.4:
        return {name: mutate_safetensors_header(data, rng)}
    for _ in range(pick(rng, (1, 1, 1, 2, 4))):
        data = mutate_bytes(data, sample.focus[name], rng)
    return {name: data}


def load(path: Path, stage: str, home: Path, number: int = 0) -> str:
    """Run the load path as far as ``stage``; what it came to. The number varies what is done with the model."""
    if stage == "model":
        return _answer(path, home, number)
    checkpoint = open_checkpoint(path)
    _read_everything(checkpoint)
    if stage != "headers":
        _bind(checkpoint, stage)
    return "loaded"


def _read_everything(checkpoint: Checkpoint) -> None:
    checkpoint.fingerprint()
    for name, info in checkpoint.tensors.items():
        if len(checkpoint.read(name)) != info.nbytes:
            raise AssertionError(f"{name} came up short")
    for name in checkpoint.files:
        checkpoint.side_json(name)


def _bind(checkpoint: Checkpoint, stage: str) -> None:
    from finback.weights.bind import bind
    from finback.weights.config import ModelConfig

    config = ModelConfig.from_checkpoint(checkpoint)
    if stage == "bind":
        bind(checkpoint, config)


def _answer(path: Path, home: Path, number: int) -> str:
    """Load (some packed narrower), tokenise, compute logits, generate; every tenth also holds a conversation."""
    import finback
    from finback.config import Settings

    settings = Settings(home=home, threads=1, context=256, format=NARROWER.get(number % 10))
    with finback.load(str(path), settings=settings) as model:
        vocabulary = model.config.vocab_size
        tokens = [token for token in TOKENS if token < vocabulary]
        model.tokenizer.decode(model.tokenizer.encode("the hello <think> é"))
        logits = model.logits(tokens)
        if logits.shape != (len(tokens), vocabulary) or logits.dtype != np.float32:
            raise AssertionError(f"logits of shape {logits.shape} and type {logits.dtype}")
        model.generate(tokens, max_tokens=2, temperature=0)
        # An overflow of one token need not reach the others: only the row that the token is chosen from counts.
        if not np.isfinite(logits[-1]).all():
            raise AssertionError("logits are not finite, and still a token was chosen")
        if number % 10 == 0:  # each conversation starts a helper process for the template
            model.chat([{"role": "user", "content": "hello"}], max_tokens=2)
    return "loaded"


# --- the run


def run(
    kind: str, numbers: range, *, seed: int, stage: str, folder: Path, limit_s: float, verbose: bool = False
) -> Tally:
    """Mutations of one kind."""
    samples = list((gguf_samples if kind == "gguf" else safetensors_samples)(folder))
    home = folder / "home"
    for sample in samples:
        load(sample.path, stage, home)  # sound models load, and everything is imported
    tally = Tally()
    for number in numbers:
        name = f"{kind}:{number}"
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        rng = np.random.default_rng([seed, KINDS.index(kind), number])
        sample = pick(rng, samples)
        if verbose:
            print(f"\r{name} ({sample.path}) ", end="", flush=True)
        changes = mutated(sample, rng, folder)
        _run_one(name, sample, changes, stage, home, limit_s, tally)
        if len(numbers) > 1:  # a single one is to be looked at
            _restore(sample, changes)
    faulthandler.cancel_dump_traceback_later()
    return tally


def _run_one(
    name: str, sample: Sample, changes: Mapping[str, bytes], stage: str, home: Path, limit_s: float, tally: Tally
) -> None:
    for file, data in changes.items():
        (_home(sample.path) / file).write_bytes(data)
    number, peak = int(name.partition(":")[2]), _peak_bytes()
    limit_s *= NARROWER_FACTOR if number % 10 in NARROWER else 1
    outcome, seconds, trouble = _attempt(sample.path, stage, home, number)
    for _ in range(2):  # a busy machine is slow once, a slow load always is
        if seconds > limit_s:
            seconds = min(seconds, _attempt(sample.path, stage, home, number).seconds)
    if trouble:
        tally.failures.append(f"{name}: {trouble}")
    if seconds > limit_s:
        tally.failures.append(f"{name}: took {seconds:.2f} s ({outcome})")
    if _peak_bytes() - peak > MEMORY_BYTES:
        tally.failures.append(f"{name}: took {(_peak_bytes() - peak) >> 20} MiB ({outcome})")
    tally.outcomes[outcome] += 1
    tally.first.setdefault(outcome, name)
    tally.slowest_s = max(tally.slowest_s, seconds)


class Attempt(NamedTuple):
    """One load: how it ended, how long it took, and what is wrong with that, if anything."""

    outcome: str
    seconds: float
    trouble: str


def _attempt(path: Path, stage: str, home: Path, number: int) -> Attempt:
    outcome, trouble, start = "untyped", "", time.process_time()
    try:
        with warnings.catch_warnings(action="error"):
            outcome = load(path, stage, home, number)
    except FinbackError as error:
        outcome = type(error).__name__
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        trouble = f"{type(error).__name__}: {str(error)[:300]}"
    seconds = time.process_time() - start
    shutil.rmtree(home, ignore_errors=True)
    return Attempt(outcome, seconds, trouble)


def _restore(sample: Sample, changes: Mapping[str, bytes]) -> None:
    for file in changes:
        (_home(sample.path) / file).write_bytes(sample.files[file])


def _home(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(kind: str, mutations: int, tally: Tally) -> None:
    outcomes = ", ".join(f"{count} {name} (as {tally.first[name]})" for name, count in tally.outcomes.most_common())
    print(
        f"\r{kind}: {mutations} mutations: {outcomes}; slowest {tally.slowest_s:.2f} s; {len(tally.failures)} failures"
    )
    for failure in tally.failures[:50]:
        print("  FAILED", failure)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.weights.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--mutations", type=int, default=10_000, help="of each kind")
    parser.add_argument("--kind", choices=KINDS, help="only this kind")
    parser.add_argument("--stage", choices=STAGES, default="model", help="how far to load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="run one mutation and keep its files")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of processor time that one load may take")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    shared_memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="finback-fuzz-", dir=shared_memory if shared_memory.is_dir() else None))
    print(f"files in {folder}, seed {options.seed}")
    failed = False
    for kind in KINDS:
        if options.kind not in (None, kind) or (options.only and not options.only.startswith(kind)):
            continue
        first = int(options.only.partition(":")[2]) if options.only else 0
        numbers = range(first, first + (1 if options.only else options.mutations))
        tally = run(
            kind, numbers, seed=options.seed, stage=options.stage, folder=folder, limit_s=options.limit, verbose=True
        )
        show(kind, len(numbers), tally)
        failed |= bool(tally.failures)
    if not options.only:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main(sys.argv[1:]))
