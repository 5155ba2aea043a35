"""Choices: tokens out of logits, experts out of router scores; equal input, equal choice, on every processor."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finback import _native

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


def sample(logits: Floats, *, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float) -> int:
    """Draw a token from float32 logits [vocab] with one uniform number in [0, 1).

    Logits are divided by ``temperature`` (0: the largest logit wins, smallest index among equals). Then
    tokens in descending order, smaller index first among equals, are kept: the first ``top_k`` (0: all), of
    those the ones preceded by less than ``top_p`` of their probability, of those the ones at least
    ``min_p`` times as likely as the likeliest. The token is where the running sum of what is kept exceeds
    ``uniform`` of its total. Tokens less likely than e^-87 times the likeliest are never drawn.

    Raises KernelArgumentError for parameters out of range and for logits that hold NaN or +infinity, or
    only -infinity.
    """
    return _native.sample(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, uniform=uniform)


def top_logprobs(logits: Floats, k: int) -> tuple[Ints, Floats]:
    """The ``k`` likeliest tokens and their log-softmax, likeliest first, smaller index first among equals.

    Returns int32 [k] and float32 [k]. Raises KernelArgumentError as :func:`sample` does, and for k
    above the vocabulary.
    """
    return _native.top_logprobs(logits, k)


def logprob_of(logits: Floats, id: int) -> float:
    """Log-softmax of token ``id``, rounded to float32. Raises KernelArgumentError as :func:`sample` does."""
    return _native.logprob_of(logits, id)


def route(
    logits: Floats,
    *,
    bias: Floats | None,
    scoring: Literal["softmax", "sigmoid"],
    top_k: int,
    groups: int,
    top_groups: int,
    group_rule: Literal["none", "max", "top2"],
    normalize: bool,
    scale: float,
) -> tuple[Ints, Floats]:
    """Choose ``top_k`` experts per token (DeepSeek-V2 section 2.2, DeepSeek-V3 section 2.1.2).

    logits float32 [n, experts]; bias float32 [experts] or None is added to the scores for the choice, never
    to the weights. ``group_rule`` "max" or "top2" first keeps the ``top_groups`` of ``groups`` equal groups
    whose best score, or sum of the two best, is largest; "none" ignores groups. Weights are the chosen
    scores, divided by their sum + 1e-20 if ``normalize``, times ``scale``.

    Returns ids int32 [n, top_k] by descending score, smaller index first among equals (groups likewise),
    and weights float32 [n, top_k]. NaN scores rank last, so ids are always valid and distinct; their
    weights are NaN.
    """
    return _native.route(
        logits,
        bias=bias,
        scoring=scoring,
        top_k=top_k,
        groups=groups,
        top_groups=top_groups,
        group_rule=group_rule,
        normalize=normalize,
        scale=scale,
    )
