"""Rule R1 over real models of every family: company, threads, chunks, preemption and scoring change no bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import finback
from finback import kernels
from finback.config import Settings
from finback.engine.engine import Engine
from finback.engine.memory import plan_cache
from finback.engine.request import SamplingParams
from tests.engine.collect import finish
from tests.weights.tiny import FAMILIES, VOCAB_SIZE, write_tiny_folder

PROMPT = [(37 * i) % (VOCAB_SIZE - 10) + 5 for i in range(75)]  # more than a block
PARAMS = SamplingParams(seed=5, max_tokens=24, temperature=0.8, ignore_eos=True)


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[finback.LoadedModel]:
    home = tmp_path_factory.mktemp(request.param)
    folder = write_tiny_folder(home / "model", request.param, dtype="BF16")
    before = kernels.threads()
    with finback.load(folder, settings=Settings(home=home, threads=2)) as model:
        yield model
    kernels.set_threads(before)


@pytest.fixture
def engine_of(loaded: finback.LoadedModel) -> Callable[..., Engine]:
    """``engine_of(blocks=200, **settings)``: another engine over the same weights."""

    def make(blocks: int = 200, **options: int) -> Engine:
        settings = Settings(**options)
        config = loaded.config
        kv_bytes = config.kv_bytes_per_token(loaded.settings.kv_dtype)
        plan = plan_cache(config, settings, blocks * 64 * kv_bytes)
        return Engine(loaded.engine.model, loaded.tokenizer, settings, plan=plan)

    return make


def tokens_of(engine: Engine, others: int = 0) -> list[int]:
    for i in range(others):
        if i == others // 2:
            engine.add("it", PROMPT, PARAMS)
        length, answer = 1 + 13 * i % 90, 3 + 7 * i % 40
        engine.add(f"other-{i}", PROMPT[-length:], SamplingParams(seed=i, max_tokens=answer))
    if not others:
        engine.add("it", PROMPT, PARAMS)
    return finish(engine)["it"].tokens


def test_tokens_do_not_depend_on_the_rest(engine_of: Callable[..., Engine]) -> None:
    kernels.set_threads(1)
    alone = tokens_of(engine_of())
    assert len(set(alone)) > 8
    kernels.set_threads(2)
    assert tokens_of(engine_of()) == alone
    assert tokens_of(engine_of(), others=15) == alone
    assert tokens_of(engine_of(batch_tokens=7)) == alone
    assert tokens_of(engine_of(batch_tokens=7), others=15) == alone


def test_preempted_requests_give_the_same_tokens(engine_of: Callable[..., Engine]) -> None:
    def run(engine: Engine) -> list[list[int]]:
        for i in range(3):
            engine.add(f"r{i}", PROMPT[:60], SamplingParams(seed=i, max_tokens=120, ignore_eos=True))
        results = finish(engine)
        return [results[f"r{i}"].tokens for i in range(3)]

    tight = engine_of(blocks=5, context=200)
    assert run(tight) == run(engine_of())
    assert tight._scheduler.preemptions > 0


def test_logits_do_not_depend_on_chunks_or_threads(engine_of: Callable[..., Engine]) -> None:
    expected = engine_of().logits(PROMPT)
    assert np.array_equal(engine_of().logits(PROMPT, chunk=7), expected)
    assert np.array_equal(engine_of().logits(PROMPT, chunk=1), expected)
    kernels.set_threads(1)
    assert np.array_equal(engine_of().logits(PROMPT, chunk=64), expected)
    kernels.set_threads(2)


def test_both_roles_agree(engine_of: Callable[..., Engine], loaded: finback.LoadedModel) -> None:
    """Prompt tokens may use another form of attention than generated ones: equal to rounding, not to the bit."""
    engine = engine_of()
    given, written = engine.logits(PROMPT), engine.logits(PROMPT, prompt=30)
    assert np.array_equal(given[:30], written[:30])
    assert np.abs(given - written).max() < (0.05 if loaded.config.is_mla else 1e-6) * max(1, given.std())
