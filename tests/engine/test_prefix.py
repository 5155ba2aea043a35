"""Shared beginnings: what is found is told, never crosses tenants, and changes no token of any answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finback.engine.engine import Engine
from finback.engine.request import SamplingParams, Usage
from tests.conftest import TinyModel
from tests.engine.collect import Finished, finish

SYSTEM = [(37 * i) % 251 for i in range(200)]  # three blocks and a bit
MakeEngine = Callable[..., Any]


def ask(engine: Engine, prompt: list[int], tenant: str = "", **params: Any) -> Finished:
    engine.add("it", prompt, SamplingParams(**{"seed": 3, "max_tokens": 5, **params}), tenant=tenant)
    return finish(engine)["it"]


def test_the_second_request_finds_the_beginning(make_engine: MakeEngine) -> None:
    model = TinyModel()
    engine = make_engine(model)
    assert ask(engine, [*SYSTEM, 1]).usage == Usage(201, 5, 0)
    model.batches.clear()
    assert ask(engine, [*SYSTEM, 2]).usage == Usage(201, 5, 192)
    assert [batch.rows for batch in model.batches] == [9, 1, 1, 1, 1]


def test_a_token_is_left_to_compute(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first = ask(engine, SYSTEM[:128])
    again = ask(engine, SYSTEM[:128])
    assert (first.usage, again.usage) == (Usage(128, 5, 0), Usage(128, 5, 64))
    assert first.tokens == again.tokens


def test_hits_change_no_token(make_engine: MakeEngine) -> None:
    warm = make_engine()
    for count in (64, 65, 127, 128, 130, 200):
        for tail in ([7], [9, 9]):
            prompt = SYSTEM[:count] + tail
            assert ask(warm, prompt).tokens == ask(make_engine(), prompt).tokens
    assert warm.stats().prefix_hit_tokens > 500


def test_tenants_share_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert ask(engine, SYSTEM, "a").usage.cached_tokens == 0
    assert ask(engine, SYSTEM, "b").usage.cached_tokens == 0
    assert ask(engine, SYSTEM).usage.cached_tokens == 0
    assert ask(engine, SYSTEM, "a").usage.cached_tokens == 192


def test_it_can_be_turned_off(make_engine: MakeEngine) -> None:
    engine = make_engine(prefix_cache_mib=0)
    ask(engine, SYSTEM)
    assert ask(engine, SYSTEM).usage.cached_tokens == 0
    assert engine.stats().blocks_cached == 0


def second_turn(engine: Engine) -> tuple[list[int], list[int], int]:
    """A conversation of two turns: both answers, and what the second turn found."""
    first = ask(engine, SYSTEM[:60], max_tokens=150, ignore_eos=True)
    second = ask(engine, [*SYSTEM[:60], *first.tokens, 5, 6], max_tokens=20)
    assert second.usage is not None
    return first.tokens, second.tokens, second.usage.cached_tokens


def test_an_answer_is_a_prompt_later_only_where_roles_do_not_matter(make_engine: MakeEngine) -> None:
    """The tiny model leaves something else in the cache for a generated token, as latent attention does."""
    cold = make_engine(prefix_cache_mib=0)
    first, second, found = second_turn(make_engine())
    assert (first, second, 0) == second_turn(cold)
    assert found == 0  # the first block holds tokens of the answer


def test_samples_of_one_prompt_compute_it_once(make_engine: MakeEngine) -> None:
    """As a server does for n > 1: all are added at once, the first one computes, the others wait for its blocks."""
    model = TinyModel()
    engine = make_engine(model, batch_tokens=50)
    for i in range(4):
        engine.add(f"r{i}", SYSTEM, SamplingParams(seed=i, max_tokens=5))
    results = finish(engine)
    assert [results[f"r{i}"].usage for i in range(4)] == [Usage(200, 5, 0)] + [Usage(200, 5, 192)] * 3
    assert engine.stats().prompt_tokens == 200 + 3 * 8
    for i in range(4):
        assert results[f"r{i}"].tokens == ask(make_engine(), SYSTEM, seed=i).tokens


def test_without_a_cache_nobody_waits_for_another(make_engine: MakeEngine) -> None:
    model = TinyModel()
    engine = make_engine(model, prefix_cache_mib=0)
    for i in range(2):
        engine.add(f"r{i}", SYSTEM, SamplingParams(seed=i, max_tokens=5))
    engine.step()
    assert [batch.rows for batch in model.batches] == [400]


def test_an_aborted_prompt_leaves_what_it_had_computed(make_engine: MakeEngine) -> None:
    engine = make_engine(batch_tokens=100)
    engine.add("gone", SYSTEM, SamplingParams())
    engine.step()
    engine.abort("gone")
    finish(engine)
    assert ask(engine, SYSTEM).usage.cached_tokens == 64


def test_a_preempted_request_comes_back_through_the_cache(make_engine: MakeEngine) -> None:
    model = TinyModel()
    tight = make_engine(model, blocks=7, context=256)
    for i in range(2):
        tight.add(f"r{i}", [i, *SYSTEM[:63]], SamplingParams(seed=i, max_tokens=150, ignore_eos=True))
    results = finish(tight)
    assert tight.stats().preemptions == 1
    assert sum(batch.rows for batch in model.batches) == 2 * 213  # the answer's full blocks were still there
    assert [result.usage for result in results.values()] == [Usage(64, 150, 0)] * 2
