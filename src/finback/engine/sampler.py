"""How the next token is chosen from a row of logits.

Chance comes from a counter-based generator (Philox 4x64, Salmon et al. 2011) keyed by the request's seed,
with the token's position as the counter: nothing is carried from one token to the next, so a request's tokens
do not depend on what ran beside it, on how its prompt was cut, or on whether it was interrupted and computed
again.

Log-probabilities are the log-softmax of the model's own logits, before penalties, bias and temperature: what
the model believes, not what the settings made of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finback import kernels
from finback.engine.request import SamplingParams, TokenLogprob
from finback.errors import EngineError, KernelArgumentError

_MASK = (1 << 64) - 1


def philox(key: int, counter: int) -> int:
    """64 random bits: a fixed function of ``key`` and ``counter``."""
    x0, x1, x2, x3 = counter & _MASK, 0, 0, 0
    k0, k1 = key & _MASK, 0
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x0, 0xCA5A826395121157 * x2
        x0, x1, x2, x3 = (b >> 64) ^ x1 ^ k0, b & _MASK, (a >> 64) ^ x3 ^ k1, a & _MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return x0


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 24 random bits, so that it stays below 1 in float32 too."""
    return float(philox(seed, position) >> 40) * 2.0**-24


class Sampler:
    """Chooses one request's tokens. Its only state is derived from them: the counts that penalties need."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], seed: int) -> None:
        self._params = params
        self._seed = seed
        self._answer: Counter[int] = Counter()
        self._seen = dict.fromkeys(prompt) if params.repetition_penalty != 1.0 else {}
        self._counted = len(prompt)
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)

    def choose(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> tuple[int, TokenLogprob | None]:
        """The token after ``tokens``, and its log-probability if asked for. EngineError if a logit is NaN."""
        try:
            token = self._draw(self._adjusted(logits, tokens), len(tokens))
            count = self._params.logprobs
            return token, None if count is None else token_logprob(logits, token, count)
        except KernelArgumentError as error:  # the settings are checked: what a kernel refuses is the logits
            raise EngineError(
                "the model's logits are not numbers (NaN or infinity)",
                hint="the weights may be damaged: check the file, or try another one",
            ) from error

    def _draw(self, logits: NDArray[np.float32], position: int) -> int:
        params = self._params
        if params.greedy:
            return kernels.sample(logits, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, uniform=0.0)
        return kernels.sample(
            logits,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            uniform=uniform(self._seed, position),
        )

    def _adjusted(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits with penalties and bias; the model's own array when there are none."""
        if not (self._params.penalised or len(self._bias_ids)):
            return logits
        adjusted = logits.copy()
        self._count(tokens)
        self._penalise(adjusted)
        adjusted[self._bias_ids] += self._bias
        return adjusted

    def _count(self, tokens: Sequence[int]) -> None:
        fresh = tokens[self._counted :]
        self._answer.update(fresh)
        self._seen.update(dict.fromkeys(fresh))
        self._counted = len(tokens)

    def _penalise(self, logits: NDArray[np.float32]) -> None:
        params = self._params
        if params.repetition_penalty != 1.0 and self._seen:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            values, penalty = logits[seen], np.float32(params.repetition_penalty)
            logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        if self._answer:
            ids = np.fromiter(self._answer.keys(), np.int64, len(self._answer))
            counts = np.fromiter(self._answer.values(), np.float32, len(self._answer))
            logits[ids] -= params.presence_penalty + params.frequency_penalty * counts


def token_logprob(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Log-probability of ``token`` and of the ``top`` most likely tokens, under ``logits``."""
    if top == 0:
        return TokenLogprob(token, float(kernels.logprob_of(logits, token)), ())
    ids, logprobs = kernels.top_logprobs(logits, min(top, len(logits)))
    best = tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))
    return TokenLogprob(token, float(kernels.logprob_of(logits, token)), best)
