"""Choosing experts: against the twin for every rule, ties, and scores that are no numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finback import kernels
from finback.errors import KernelArgumentError
from finback.kernels import reference
from tests.kernels.paged import normal

GREEDY: dict[str, Any] = {
    "bias": None, "scoring": "softmax", "top_k": 2, "groups": 1, "top_groups": 1, "group_rule": "none",
    "normalize": False, "scale": 1.0,
}  # fmt: skip


V2: dict[str, Any] = {"top_k": 6, "groups": 8, "top_groups": 3, "group_rule": "max", "scale": 16.0}
V3: dict[str, Any] = {
    "scoring": "sigmoid", "top_k": 8, "groups": 8, "top_groups": 4, "group_rule": "top2", "normalize": True,
    "scale": 2.5,
}  # fmt: skip
SMALL: dict[str, Any] = {**V3, "top_k": 3, "groups": 4, "top_groups": 2}


@pytest.mark.parametrize(
    ("experts", "change", "biased"),
    [
        (64, {"top_k": 6}, False),
        (160, V2, False),
        (256, V3, True),
        (12, SMALL, True),
        (7, {"top_k": 7, "normalize": True}, True),
        (1, {"top_k": 1}, False),
    ],
)
@pytest.mark.parametrize("tokens", [0, 1, 33])
def test_equals_the_twin(
    isa: str, rng: np.random.Generator, tokens: int, experts: int, change: dict[str, Any], biased: bool
) -> None:
    arguments = {**GREEDY, **change, "bias": normal(rng, experts) * np.float32(0.3) if biased else None}
    logits = normal(rng, tokens, experts)
    ids, weights = kernels.route(logits, **arguments)
    expected_ids, expected = reference.route(logits, **arguments)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_the_same_alone_and_among_others(isa: str, rng: np.random.Generator, threads: int) -> None:
    logits = normal(rng, 200, 64)
    alone = [kernels.route(row[None], **{**GREEDY, "top_k": 6}) for row in logits]
    kernels.set_threads(threads)
    ids, weights = kernels.route(logits, **{**GREEDY, "top_k": 6})
    np.testing.assert_array_equal(ids, np.concatenate([one[0] for one in alone]))
    np.testing.assert_array_equal(weights, np.concatenate([one[1] for one in alone]))


def test_the_same_on_every_instruction_set(rng: np.random.Generator) -> None:
    logits = normal(rng, 50, 64)
    results = []
    for name in kernels.available_isas():
        previous = kernels.select_isa(name)
        results.append(kernels.route(logits, **{**GREEDY, "top_k": 6, "normalize": True}))
        kernels.select_isa(previous)
    for ids, weights in results:
        np.testing.assert_array_equal(ids, results[0][0])
        np.testing.assert_array_equal(weights, results[0][1])


def test_the_bias_chooses_but_does_not_weigh(isa: str) -> None:
    bias = np.array([0, 0, 5, 0], np.float32)
    ids, weights = kernels.route(np.zeros((1, 4), np.float32), **{**GREEDY, "scoring": "sigmoid", "bias": bias})
    np.testing.assert_array_equal(ids, [[2, 0]])
    np.testing.assert_array_equal(weights, [[0.5, 0.5]])


def test_masked_groups_stay_out_even_among_negative_scores(isa: str) -> None:
    """A group left out must not come back as zero, which would beat negative biased scores."""
    bias = np.array([-3, -3, -3, -3, -3, -3, -9, -9], np.float32)
    arguments = {**GREEDY, "scoring": "sigmoid", "bias": bias, "groups": 4, "top_groups": 1, "group_rule": "top2"}
    logits = np.array([[0, 0, 1, 1, 0.5, 0.5, 9, 9]], np.float32)
    np.testing.assert_array_equal(kernels.route(logits, **arguments)[0], [[2, 3]])


def test_ties_go_to_the_smaller_index(isa: str) -> None:
    equal = {**GREEDY, "top_k": 3, "groups": 4, "top_groups": 2, "group_rule": "max"}
    np.testing.assert_array_equal(kernels.route(np.zeros((1, 8), np.float32), **equal)[0], [[0, 1, 2]])


@pytest.mark.parametrize("rule", ["none", "max", "top2"])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_ids_are_valid_whatever_the_scores(isa: str, rule: str, scoring: str, bad: float) -> None:
    change = {"scoring": scoring, "top_k": 4, "groups": 4, "top_groups": 2, "group_rule": rule}
    for logits in (np.full((1, 8), bad, np.float32), np.array([[bad, 1, 2, bad, 3, 4, 5, bad]], np.float32)):
        ids, _ = kernels.route(logits, **{**GREEDY, **change})
        assert len(set(ids[0])) == 4
        assert set(ids[0]) <= set(range(8))


@pytest.mark.parametrize(
    ("names", "change"),
    [
        ("top_k", {"top_k": 0}), ("top_k", {"top_k": 9}), ("scoring", {"scoring": "relu"}),
        ("group_rule", {"group_rule": "mean"}), ("groups", {"group_rule": "max", "groups": 3}),
        ("groups", {"group_rule": "max", "groups": 0}), ("groups", {"group_rule": "top2", "groups": 8}),
        ("top_groups", {"group_rule": "max", "groups": 4, "top_groups": 5}),
        ("top_k", {"group_rule": "max", "groups": 4, "top_groups": 1, "top_k": 3}),
        ("bias", {"bias": np.zeros(7, np.float32)}),
    ],
)  # fmt: skip
def test_refuses(names: str, change: dict[str, Any]) -> None:
    with pytest.raises(KernelArgumentError, match=rf"\[route\] {names}"):
        kernels.route(np.zeros((2, 8), np.float32), **{**GREEDY, **change})
