"""SamplingParams refuses what cannot be used, and names the field."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from finback.engine.request import MAX_LOGPROBS, MAX_STOPS, Request, SamplingParams, Usage
from finback.errors import InvalidRequest

BAD: list[tuple[str, Any]] = [
    *(("max_tokens", v) for v in (0, -1, 1.5, True, "3", 2**63)),
    *(("temperature", v) for v in (-0.1, math.nan, math.inf, 1e308, "1", None, True)),
    *(("top_k", v) for v in (-1, 0.5, False, 2**63)),
    *((name, v) for name in ("top_p", "min_p") for v in (-0.01, 1.01, math.nan, "0.5")),
    *(("repetition_penalty", v) for v in (0.0, -1.0, math.inf, 1e6)),
    *((name, v) for name in ("presence_penalty", "frequency_penalty") for v in (-2.1, 2.1, math.nan)),
    *(("seed", v) for v in (1.0, "1", True, 2**64, -(2**63) - 1)),
    *(("stop", v) for v in ("text", ("",), (1,), ("a",) * (MAX_STOPS + 1), ("x" * 1001,), None)),
    *(("stop_token_ids", v) for v in (5, (-1,), (1.5,), ("a",))),
    *(("ignore_eos", v) for v in (1, None, "yes")),
    *(("logprobs", v) for v in (-1, MAX_LOGPROBS + 1, 1.0, True)),
    *(("logit_bias", v) for v in ([(1, 2)], {"1": 1.0}, {1: 101.0}, {1: math.nan}, {-1: 1.0}, {1: "x"})),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{name: value})
    assert caught.value.parameter == name
    assert name in caught.value.message


def test_edges_are_accepted() -> None:
    SamplingParams(
        max_tokens=1, temperature=0, top_k=0, top_p=0, min_p=1, repetition_penalty=0.01, presence_penalty=-2,
        frequency_penalty=2, seed=-(2**63), stop=("x" * 1000,), stop_token_ids=[0], logprobs=0, logit_bias={0: -100},
    )  # fmt: skip
    SamplingParams(seed=2**64 - 1, temperature=np.float32(0.5), max_tokens=np.int64(3))


def test_greedy_at_temperatures_that_cannot_be_divided_by() -> None:
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(temperature=1e-30).greedy
    assert not SamplingParams(temperature=0.01).greedy


def test_derived_counts() -> None:
    request = Request("a", [1, 2, 3, 4, 5], num_prompt=3, max_length=9, num_computed=2)
    assert (request.num_pending, request.num_generated) == (3, 2)
    assert Usage(3, 2).total_tokens == 5
