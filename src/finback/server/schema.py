"""The OpenAI dialect's request bodies: every field that clients send, typed; each is honoured or refused.

Fields beyond OpenAI's own (``top_k``, ``min_p``, ``repetition_penalty``, DeepSeek's ``thinking``) have the names that
other servers use. A field that Finback cannot honour is accepted only with the value that asks for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from finback.engine.request import SamplingParams
from finback.errors import InvalidRequest

MAX_CHOICES = 64  # answers to one request, all its prompts together
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens in /v1/completions

TokenIds = list[Annotated[int, Meta(ge=0, lt=2**31)]]
PositiveCount = Annotated[int, Meta(ge=1, lt=2**31)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options of a streamed answer."""

    include_usage: bool = False


class Thinking(msgspec.Struct, forbid_unknown_fields=True):
    """DeepSeek's switch for reasoning before the answer."""

    type: Literal["enabled", "disabled"]


class ResponseFormat(msgspec.Struct):
    """What shape the answer must have; only plain text can be asked for."""

    type: str


class Sampled(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What chat and plain completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: PositiveCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    ignore_eos: bool | None = None  # go on until max_tokens
    user: str | None = None  # who asks: for the caller's own book-keeping, changes no answer

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a streamed answer ends with a chunk that holds the usage alone."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, defaults: SamplingParams, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The engine's parameters: what was asked for over the model's own defaults."""
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "ignore_eos",
        )
        given: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        biases = _biases(self.logit_bias or {})
        return replace(
            defaults,
            **given,
            max_tokens=max_tokens,
            logprobs=logprobs,
            stop=stop,
            logit_bias=biases,
            seed=self.seed,
        )

    def refuse_unsupported(self) -> None:
        """Raise InvalidRequest for a combination or a value that cannot be honoured."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream: true", parameter="stream_options")


class ChatRequest(Sampled, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=10_000)]
    max_completion_tokens: PositiveCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    thinking: Thinking | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    response_format: ResponseFormat | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None  # kept by the caller only: nothing is stored here
    service_tier: Literal["auto", "default"] | None = None

    @property
    def wants_thinking(self) -> bool | None:
        """True or False as asked, None for the model's default. Any effort means on: reasoning has one depth."""
        if self.thinking is not None:
            return self.thinking.type == "enabled"
        if self.reasoning_effort is not None:
            return self.reasoning_effort != "none"
        return None

    @property
    def logprobs_count(self) -> int | None:
        """Alternatives to report for each token; None without logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def refuse_unsupported(self) -> None:
        """Raise InvalidRequest for a combination or a value that cannot be honoured."""
        super().refuse_unsupported()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", parameter="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidRequest("max_tokens or max_completion_tokens, not both", parameter="max_tokens")
        if self.response_format is not None and self.response_format.type != "text":
            raise InvalidRequest("only response_format {type: text} is supported", parameter="response_format")
        if self.tool_choice not in (None, "auto", "none"):
            raise InvalidRequest("tool_choice must be auto or none", parameter="tool_choice")
        if self.parallel_tool_calls is False:
            raise InvalidRequest("parallel_tool_calls cannot be switched off", parameter="parallel_tool_calls")
        if self.store:
            raise InvalidRequest("nothing is stored here: store must be false", parameter="store")


class CompletionRequest(Sampled, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/completions. A prompt is text, token ids, or a list of either."""

    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=16)] | None = None
    suffix: str | None = None

    def prompts(self) -> list[str | TokenIds]:
        """The prompts one by one, each text or token ids; at most 16."""
        for shape in (str, TokenIds, Annotated[list[str | TokenIds], Meta(min_length=1, max_length=16)]):
            try:
                found = msgspec.convert(self.prompt, shape)
            except msgspec.ValidationError:
                continue
            if (found and shape == TokenIds) or isinstance(found, str):
                return [found]
            if found:
                return list(found)
        raise InvalidRequest("prompt must be text, token ids, or a list of up to 16 of them", parameter="prompt")

    def refuse_unsupported(self) -> None:
        """Raise InvalidRequest for a combination or a value that cannot be honoured."""
        super().refuse_unsupported()
        if len(self.prompts()) * (self.n or 1) > MAX_CHOICES:
            raise InvalidRequest(f"prompts times n may not exceed {MAX_CHOICES}", parameter="n")
        if self.best_of not in (None, 1, self.n):
            raise InvalidRequest("best_of other than n is not supported", parameter="best_of")
        if self.suffix:
            raise InvalidRequest("suffix is not supported", parameter="suffix")
        if self.echo and self.logprobs is not None:
            raise InvalidRequest("echo together with logprobs is not supported", parameter="echo")


class UsageQuery(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """GET /v1/usage."""

    days: Annotated[int, Meta(ge=1, le=3660)] = 30
    key: Annotated[str, Meta(max_length=64)] | None = None


Request = TypeVar("Request", ChatRequest, CompletionRequest)


def parse_query(given: Mapping[str, str], shape: type[UsageQuery]) -> UsageQuery:
    """Check a request's query; InvalidRequest names the first parameter that is wrong."""
    try:
        return msgspec.convert(dict(given), shape, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error), parameter=_field_of(str(error))) from None


def parse(body: bytes, shape: type[Request]) -> Request:
    """Decode and check a request's body; InvalidRequest names the first field that is wrong."""
    try:
        request = msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error), parameter=_field_of(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    request.refuse_unsupported()
    return request


def _field_of(message: str) -> str | None:
    """The field that msgspec's message speaks of: at the end of a path, or as the unknown or missing one."""
    found = re.search(r"field `([^`]{1,64})`", message) or re.search(r"at `(?:key in )?\$\.([^`]{1,64})`", message)
    return found.group(1) if found else None


def _biases(given: dict[str, float]) -> dict[int, float]:
    if not all(re.fullmatch(r"[0-9]{1,10}", token) for token in given):
        raise InvalidRequest("logit_bias: keys must be token ids", parameter="logit_bias")
    return {int(token): bias for token, bias in given.items()}
