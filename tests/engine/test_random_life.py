"""Requests come and go at random, with everything turned on: books are right, blocks come back, answers are right."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from finback.engine.request import SamplingParams
from tests.engine.collect import Finished

BEGINNINGS = [[(17 * i + start) % 250 for i in range(length)] for start, length in ((0, 64), (1, 130), (2, 200))]


def drawn(random_: random.Random) -> tuple[list[int], SamplingParams]:
    prompt = [*random_.choice(BEGINNINGS), *random_.choices(range(8), k=random_.randrange(1, 12))]
    params = SamplingParams(
        seed=random_.randrange(100),
        max_tokens=random_.choice((1, 3, 20, 90)),
        temperature=random_.choice((0.0, 0.2, 1.0)),
        repetition_penalty=random_.choice((1.0, 1.0, 1.2)),
        stop=random_.choice(((), (), ("a",))),
        ignore_eos=True,
    )
    return prompt[: random_.randrange(1, len(prompt) + 1)], params


@pytest.mark.parametrize("seed", range(6))
def test_blocks_come_back_and_answers_are_right(make_engine: Callable[..., Any], seed: int) -> None:
    random_ = random.Random(seed)
    engine = make_engine(blocks=16, context=512, batch_tokens=random_.choice((5, 60, 512)), max_requests=6)
    asked: dict[str, tuple[list[int], SamplingParams]] = {}
    told: dict[str, Finished] = {}
    aborted: set[str] = set()
    for turn in range(160):
        if random_.random() < 0.4:
            asked[f"r{turn}"] = drawn(random_)
            engine.add(f"r{turn}", *asked[f"r{turn}"], tenant=random_.choice("ab"), priority=random_.randrange(2))
        if asked and random_.random() < 0.15:
            aborted.add(random_.choice(sorted(asked)))
            engine.abort(max(aborted))
        for output in engine.step():
            told.setdefault(output.request_id, Finished()).take(output)
        engine.check_integrity()
    while engine.has_work:
        for output in engine.step():
            told.setdefault(output.request_id, Finished()).take(output)
    engine.check_integrity()
    stats = engine.stats()
    assert stats.running == stats.waiting == 0
    assert stats.blocks_free + stats.blocks_cached == stats.blocks_total
    assert told.keys() == asked.keys()
    assert not engine._scheduler._tenants
    assert not engine._scheduler._promised
    alone = make_engine(prefix_cache_mib=0, draft_tokens=0)
    for name in random_.sample(sorted(told), 12):
        alone.add(name, *asked[name])
        expected: list[int] = []
        while alone.has_work:
            expected += [token for output in alone.step() for token in output.tokens]
        got = told[name]
        assert got.tokens == expected[: len(got.tokens)] if got.finish_reason == "abort" else got.tokens == expected
        assert got.usage.completion_tokens == len(got.tokens)
