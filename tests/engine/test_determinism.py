"""A seeded request's tokens do not depend on its company, on threads, or on how prompts are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from finback.engine.engine import Engine
from finback.engine.request import SamplingParams
from tests.engine.collect import finish

REQUEST = ([5, 17, 44, 9, 120, 33, 7, 81, 2, 64, 11], SamplingParams(seed=11, max_tokens=40, temperature=0.9))


def company(count: int) -> list[tuple[list[int], SamplingParams]]:
    """Requests of every length and manner, seeded and not."""
    return [
        (
            [(7 * i + j) % 200 + 1 for j in range(3 + 11 * i)],
            SamplingParams(
                seed=None if i % 3 == 0 else i,
                max_tokens=5 + 9 * i % 50,
                temperature=i % 4 / 2,
                top_p=0.9 if i % 2 else 1.0,
                repetition_penalty=1.1 if i % 5 == 0 else 1.0,
            ),
        )
        for i in range(count)
    ]


def tokens_of(engine: Engine, others: int) -> list[int]:
    """The request's tokens, in the middle of the others."""
    for i, (prompt, params) in enumerate(company(others)):
        if i == others // 2:
            engine.add("it", *REQUEST)
        engine.add(f"other-{i}", prompt, params)
    if not others:
        engine.add("it", *REQUEST)
    return finish(engine)["it"].tokens


@pytest.mark.parametrize("batch_tokens", [7, 64, 512])
@pytest.mark.parametrize("others", [0, 1, 15])
def test_same_tokens_in_any_company(make_engine: Callable[..., Any], others: int, batch_tokens: int) -> None:
    alone = tokens_of(make_engine(), 0)
    assert len(set(alone)) > 10
    assert tokens_of(make_engine(blocks=64, batch_tokens=batch_tokens), others) == alone


def test_same_tokens_when_blocks_are_short(make_engine: Callable[..., Any]) -> None:
    assert tokens_of(make_engine(blocks=8, context=256), 15) == tokens_of(make_engine(), 0)
