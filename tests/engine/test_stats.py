"""What the engine says about itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from finback.engine.request import SamplingParams
from finback.engine.stats import RECENT_S, Rate
from tests.engine.collect import finish


def test_counts(make_engine: Callable[..., Any]) -> None:
    engine = make_engine(max_requests=1, batch_tokens=64)
    engine.add("a", [1] * 100, SamplingParams(max_tokens=3))
    engine.add("b", [1] * 100, SamplingParams(max_tokens=3))
    engine.step()
    now = engine.stats()
    assert (now.running, now.waiting, now.steps) == (1, 1, 1)
    assert (now.blocks_total, now.blocks_free, now.blocks_cached) == (8, 6, 0)
    finish(engine)
    end = engine.stats()
    assert (end.running, end.waiting, end.preemptions) == (0, 0, 0)
    assert (end.blocks_free, end.blocks_cached) == (7, 1)
    assert (end.prefix_query_tokens, end.prefix_hit_tokens) == (200, 64)
    assert (end.prompt_tokens, end.output_tokens) == (136, 6)
    assert end.output_tokens_per_s > 0


def test_a_rate_forgets() -> None:
    now = 100.0
    rate = Rate(lambda: now)
    rate.add(5)
    assert rate.per_s == 5  # no shorter than a second
    now += 2
    rate.add(5)
    assert rate.per_s == 5
    now += RECENT_S - 1
    assert rate.per_s == pytest.approx(5 / RECENT_S)
    now += RECENT_S
    assert rate.per_s == 0
    rate.add(1)
    assert len(rate._events) == 1
    assert rate.total == 11
