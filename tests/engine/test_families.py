"""Rule R1 over real models of every family: company, threads, chunks, preemption and scoring change no bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from finback import kernels, models
from finback.config import Settings
from finback.engine.engine import Engine
from finback.engine.memory import default_kv_dtype, plan_cache
from finback.engine.request import SamplingParams
from finback.weights.checkpoint import open_checkpoint
from finback.weights.config import ModelConfig
from finback.weights.pack import load_weights
from tests.conftest import ByteTokenizer
from tests.engine.collect import finish
from tests.engine.test_speculation import Prompter
from tests.weights.tiny import FAMILIES, VOCAB_SIZE, write_tiny_folder

PROMPT = [(37 * i) % (VOCAB_SIZE - 10) + 5 for i in range(75)]  # more than a block
PARAMS = SamplingParams(seed=5, max_tokens=16, temperature=0.8, ignore_eos=True)


class NoTokenizer(ByteTokenizer):
    """Any id stands for some byte: these tests look at ids."""

    eos_ids = frozenset()

    def token_bytes(self, token: int) -> bytes:
        return bytes([token % 128])


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp(request.param)
    checkpoint = open_checkpoint(write_tiny_folder(home / "model", request.param, dtype="BF16"))
    config = ModelConfig.from_checkpoint(checkpoint)
    return models.build(config, load_weights(checkpoint, config, format=None, cache_dir=home, threads=2))


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = kernels.threads()
    yield
    kernels.set_threads(before)


@pytest.fixture
def engine_of(model: Any) -> Callable[..., Engine]:
    """``engine_of(blocks=200, **settings)``: an engine over the model."""

    def make(blocks: int = 200, **options: int) -> Engine:
        settings = Settings(**options)
        kv_bytes = model.config.kv_bytes_per_token(default_kv_dtype(model.config))
        return Engine(model, NoTokenizer(), settings, plan=plan_cache(model.config, settings, blocks * 64 * kv_bytes))

    return make


def tokens_of(engine: Engine, others: int = 0) -> list[int]:
    for i in range(others):
        if i == others // 2:
            engine.add("it", PROMPT, PARAMS)
        length, answer = 1 + 13 * i % 75, 2 + 7 * i % 15
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
            engine.add(f"r{i}", PROMPT[:60], SamplingParams(seed=i, max_tokens=80, ignore_eos=True))
        results = finish(engine)
        return [results[f"r{i}"].tokens for i in range(3)]

    tight = engine_of(blocks=5, context=200)
    assert run(tight) == run(engine_of())
    assert tight._scheduler.preemptions > 0


def test_hits_change_no_token(engine_of: Callable[..., Engine], model: Any) -> None:
    """Two turns of a conversation: the second finds the first prompt, and its answer where roles share a kernel."""
    warm, cold = engine_of(), engine_of(prefix_cache_mib=0)
    params = SamplingParams(seed=5, max_tokens=70, temperature=0.8, ignore_eos=True)
    turns: list[list[list[int]]] = [[], []]
    for answers, engine in zip(turns, (warm, cold), strict=True):
        prompt = list(PROMPT)
        for _ in range(3):
            engine.add("it", prompt, params)
            result = finish(engine)["it"]
            answers.append(result.tokens)
            prompt += [*result.tokens, 3, 4, 5]
    assert turns[0] == turns[1]
    assert warm.stats().prefix_hit_tokens == (64 + 64 * 2 if model.config.is_mla else 128 + 192)
    assert cold.stats().prefix_hit_tokens == 0


def test_keys_and_values_do_not_depend_on_roles(engine_of: Callable[..., Engine], model: Any) -> None:
    """What lets an answer's blocks serve a later prompt; latent attention takes two forms, so there they may not."""
    engine = engine_of()
    same = np.array_equal(engine.logits(PROMPT), engine.logits(PROMPT, prompt=30))
    assert same == (not model.config.is_mla)


def test_sixty_four_at_once_answer_as_each_alone(engine_of: Callable[..., Engine]) -> None:
    """Shared beginnings, guesses, tenants, priorities, preemption and small steps at once change no token."""
    requests = [
        (
            f"r{i}",
            PROMPT[: (0, 64, 70)[i % 3]] + [(5 * i) % 90 + 3, 8, 9, 10] * (1 + i % 4),
            SamplingParams(
                seed=i,
                max_tokens=4 + 11 * i % 40,
                temperature=(0, 0.3, 1.0)[i % 3],
                frequency_penalty=0.5 if i % 7 == 0 else 0.0,
                ignore_eos=True,
            ),
        )
        for i in range(64)
    ]
    alone = engine_of(prefix_cache_mib=0, draft_tokens=0)
    expected = {}
    for name, prompt, params in requests[::4]:
        alone.add(name, prompt, params)
        expected[name] = finish(alone)[name].tokens
    for options in ({}, {"blocks": 20, "context": 200, "batch_tokens": 70}):
        engine = engine_of(**options)
        for i, (name, prompt, params) in enumerate(requests):
            engine.add(name, prompt, params, tenant=f"t{i % 3}", priority=i % 2)
        results = finish(engine)
        assert {name: results[name].tokens for name in expected} == expected
        stats = engine.stats()
        assert stats.prefix_hit_tokens > 0
        assert stats.blocks_free + stats.blocks_cached == stats.blocks_total
        assert stats.preemptions > 0 or not options


@pytest.mark.parametrize("most", [1, 5])
def test_guesses_change_no_token(engine_of: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    plain = tokens_of(engine_of(draft_tokens=0))
    monkeypatch.setattr("finback.engine.scheduler.worth_drafting", lambda chance, most, *_: most)
    engine = engine_of(draft_tokens=most)
    engine.add("it", PROMPT, PARAMS)
    engine._running["it"].request.drafter = Prompter(PROMPT + plain)
    assert finish(engine)["it"].tokens == plain
    assert engine.stats().draft_tokens_kept > 3


def test_logits_do_not_depend_on_chunks_or_threads(engine_of: Callable[..., Engine]) -> None:
    expected = engine_of().logits(PROMPT)
    assert np.array_equal(engine_of().logits(PROMPT, chunk=7), expected)
    assert np.array_equal(engine_of().logits(PROMPT, chunk=1), expected)
    kernels.set_threads(1)
    assert np.array_equal(engine_of().logits(PROMPT, chunk=64), expected)


def test_both_roles_agree(engine_of: Callable[..., Engine], model: Any) -> None:
    """Prompt tokens may use another form of attention than generated ones: equal to rounding, not to the bit."""
    engine = engine_of()
    given, written = engine.logits(PROMPT), engine.logits(PROMPT, prompt=30)
    assert np.array_equal(given[:30], written[:30])
    assert np.abs(given - written).max() < (0.05 if model.config.is_mla else 1e-6) * max(1, given.std())
