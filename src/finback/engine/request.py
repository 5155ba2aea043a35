"""The nouns that travel through the engine: what a caller asks for, what a request is, what a step tells.

They hold integers, text and plain settings, never arrays, so that every other file of the engine can speak
about requests without knowing how they are computed. :class:`SamplingParams` refuses bad values when it is
made; whoever holds one can trust it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

from finback.engine.kv_cache import BlockNames
from finback.engine.speculation import Drafter
from finback.errors import EngineError, InvalidRequest

FinishReason = Literal["stop", "length", "abort", "error"]

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_LOGPROBS = 100
MAX_PRIORITY = 1000
# Below this a division by the temperature overflows float32: the answer is the most likely token, so say so.
GREEDY_TEMPERATURE = 1e-5
# The most likely of fewer than 10^9 tokens has more than this; much smaller numbers would be 0 in float32.
GREEDY_TOP_P = 1e-9


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a request's tokens are chosen and when it ends. Invariant: every value has passed :meth:`validate`.

    Logits are changed in this order: repetition penalty (over prompt and answer), presence and frequency
    penalties (over the answer), logit bias, temperature, top-k, top-p, min-p. ``logprobs`` are of the model's
    own logits, before all of these.
    """

    max_tokens: int | None = None  # None: until the context is full
    temperature: float = 1.0  # 0: the most likely token
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: a fresh random one
    stop: tuple[str, ...] = ()  # the answer ends before the first of these
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; n: of the chosen token and of the n most likely ones
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.validate()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without chance."""
        return self.temperature < GREEDY_TEMPERATURE or self.top_p < GREEDY_TOP_P

    @property
    def penalised(self) -> bool:
        """Whether earlier tokens change the logits."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0)

    def validate(self) -> None:
        """Raise InvalidRequest unless every value can be used."""
        if self.max_tokens is not None:
            check_whole("max_tokens", self.max_tokens, 1, 1 << 31)
        _check_real("temperature", self.temperature, 0.0, 100.0)
        check_whole("top_k", self.top_k, 0, 1 << 31)
        _check_real("top_p", self.top_p, 0.0, 1.0)
        _check_real("min_p", self.min_p, 0.0, 1.0)
        _check_real("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check_real("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_real("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            check_whole("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _check_stops(self.stop)
        _check_tokens(self.stop_token_ids)
        _check_bias(self.logit_bias)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequest(f"ignore_eos must be True or False, not {self.ignore_eos!r}", parameter="ignore_eos")


def check_whole(name: str, value: Any, low: int, high: int) -> None:
    """Raise InvalidRequest unless ``value`` is a whole number in [low, high]."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {value!r}", parameter=name)


def _check_real(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a number from {low:g} to {high:g}, not {value!r}", parameter=name)


def _check_stops(stop: Any) -> None:
    if not isinstance(stop, (tuple, list)) or not all(isinstance(text, str) and text for text in stop):
        raise InvalidRequest(f"stop must be a list of strings that are not empty, not {stop!r}", parameter="stop")
    if len(stop) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in stop):
        limit = f"{MAX_STOPS} strings of {MAX_STOP_CHARACTERS} characters"
        raise InvalidRequest(f"stop holds more than {limit}", parameter="stop")


def _check_tokens(ids: Any) -> None:
    if not isinstance(ids, (tuple, list)):
        raise InvalidRequest(f"stop_token_ids must be a list of token ids, not {ids!r}", parameter="stop_token_ids")
    for token in ids:
        check_whole("stop_token_ids", token, 0, (1 << 31) - 1)


def _check_bias(bias: Any) -> None:
    if not isinstance(bias, Mapping):
        raise InvalidRequest(f"logit_bias must map token ids to numbers, not {bias!r}", parameter="logit_bias")
    for token, value in bias.items():
        check_whole("logit_bias", token, 0, (1 << 31) - 1)
        _check_real("logit_bias", value, -100.0, 100.0)


@dataclass(slots=True, eq=False)
class Request:
    """One sequence. Invariant: ``0 <= num_computed < len(tokens) <= max_length``, ``num_prompt <= len(tokens)``."""

    id: str
    tokens: list[int]  # the prompt, then what was generated
    num_prompt: int
    max_length: int  # the answer ends when there are this many tokens
    tenant: str = ""  # shares computed beginnings only with its own, and the machine fairly with others
    priority: int = 0  # larger: goes first
    arrival: int = 0  # smaller: came earlier
    num_computed: int = 0  # tokens whose keys and values are in the cache
    names: BlockNames | None = None  # of its blocks, if it shares them
    drafter: Drafter | None = None  # guesses its tokens, if it may
    num_cached: int | None = None  # tokens found in the cache when it was first admitted

    @property
    def num_pending(self) -> int:
        """Tokens that are still to be computed before the next one can be chosen."""
        return len(self.tokens) - self.num_computed

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.num_prompt


class TokenLogprob(NamedTuple):
    """Log-probability of a chosen token under the model's own logits, and the likeliest ones, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Usage(NamedTuple):
    """Tokens that a request took. ``completion_tokens`` counts all that were chosen, the one that ended it too."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, found in the prefix cache

    @property
    def total_tokens(self) -> int:
        """Prompt and answer."""
        return self.prompt_tokens + self.completion_tokens


class StepOutput(NamedTuple):
    """What one step added to one request.

    ``tokens`` come at once; ``text`` may lag behind them while a character is incomplete or a stop string may
    be beginning, and is complete when ``finish_reason`` is set. The token that ends an answer is in
    ``tokens`` and not in ``text``.
    """

    request_id: str
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None  # one per token when asked for
    finish_reason: FinishReason | None = None
    usage: Usage | None = None  # with finish_reason
    started: float | None = None  # when its computing began, of the monotonic clock
    error: EngineError | None = None  # with finish_reason "error"
