"""The OpenAI dialect: from a body to prompts and parameters, and from the engine's outputs to chunks and answers.

A choice turns outputs into message deltas; a streamed answer sends them one by one, a whole answer is their sum, so
both always say the same. Reasoning goes into ``reasoning_content``, as in DeepSeek's own interface.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from finback.engine.request import SamplingParams, StepOutput, TokenLogprob
from finback.errors import FinbackError, InvalidRequest
from finback.server.booking import Booking
from finback.server.schema import DEFAULT_COMPLETION_TOKENS, ChatRequest, CompletionRequest
from finback.server.worker import Job
from finback.text.chat import ChatFormat
from finback.text.stream import Content, Event, Reasoning, StreamParser, ToolCallStart
from finback.text.tokenizer import Tokenizer

Json = dict[str, Any]
Submit = Callable[[Sequence[Job], int], Awaitable[Booking]]  # jobs, and how many in a row share a prompt


class Choice(Protocol):
    """One of the answers that a request asked for."""

    reasoning_tokens: int

    def chunks(self, output: StepOutput) -> Iterator[Json]:
        """The ``choices`` entries of the chunks that this output makes."""

    def whole(self) -> Json:
        """The ``choices`` entry of the whole answer."""


class ChatChoice:
    """Message deltas of one chat answer. Invariant: ``message`` is the sum of the deltas given out."""

    def __init__(self, index: int, parser: StreamParser, tokenizer: Tokenizer) -> None:
        self.index = index
        self.message: Json = {"role": "assistant", "content": None}
        self.logprobs: dict[str, list[Json]] = {}
        self.reasoning_tokens = 0
        self._finish: str | None = None
        self._parser = parser
        self._tokenizer = tokenizer
        self._reasoning = False
        self._begun = False

    def chunks(self, output: StepOutput) -> Iterator[Json]:
        """See Choice. The first chunk carries the role, the last one the finish reason."""
        if not self._begun:
            self._begun = True
            yield self._entry({"role": "assistant", "content": ""})
        events = self._parser.push(output.text)
        if output.finish_reason is not None:
            events = [*events, *self._parser.flush()]
        logprobs = self._logprobs(output, events)
        for event in events:
            yield self._entry(self._take(event), logprobs)
            logprobs = None
        if logprobs is not None and output.finish_reason is None:
            yield self._entry({}, logprobs)
            logprobs = None
        if output.finish_reason is not None:
            stopped_to_call = output.finish_reason == "stop" and "tool_calls" in self.message
            self._finish = "tool_calls" if stopped_to_call else output.finish_reason
            yield self._entry({}, logprobs)

    def whole(self) -> Json:
        """See Choice."""
        return {
            "index": self.index,
            "message": self.message,
            "logprobs": self.logprobs or None,
            "finish_reason": self._finish,
        }

    def _entry(self, delta: Json, logprobs: Json | None = None) -> Json:
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": self._finish}

    def _take(self, event: Event) -> Json:
        """Add an event to the message; the delta that says it."""
        if isinstance(event, (Content, Reasoning)):
            field = "content" if isinstance(event, Content) else "reasoning_content"
            self.message[field] = (self.message.get(field) or "") + event.text
            return {field: event.text}
        calls: list[Json] = self.message.setdefault("tool_calls", [])
        if isinstance(event, ToolCallStart):
            function = {"name": event.name, "arguments": ""}
            calls.append({"id": event.id, "type": "function", "function": function})
            return {"tool_calls": [{"index": event.index, **calls[-1], "function": dict(function)}]}
        calls[event.index]["function"]["arguments"] += event.text
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}

    def _logprobs(self, output: StepOutput, events: Sequence[Event]) -> Json | None:
        """Log-probabilities of the output's tokens, under the channel that its text belongs to."""
        if events:
            self._reasoning = isinstance(events[-1], Reasoning)
        self.reasoning_tokens += len(output.tokens) if self._reasoning else 0
        if not output.logprobs:
            return None
        channel = "reasoning_content" if self._reasoning else "content"
        entries = [_chat_logprob(entry, self._tokenizer) for entry in output.logprobs]
        self.logprobs.setdefault("content", [])
        self.logprobs.setdefault(channel, []).extend(entries)
        return {channel: entries}


class TextChoice:
    """Text pieces of one plain completion."""

    def __init__(self, index: int, echo: str, tokenizer: Tokenizer) -> None:
        self.index = index
        self.reasoning_tokens = 0
        self._text = ""
        self._echo = echo
        self._logprobs: Json | None = None
        self._finish: str | None = None
        self._tokenizer = tokenizer

    def chunks(self, output: StepOutput) -> Iterator[Json]:
        """See Choice."""
        text, self._echo = self._echo + output.text, ""
        logprobs = self._legacy_logprobs(output.logprobs, len(self._text)) if output.logprobs else None
        self._text += text
        self._finish = output.finish_reason
        if logprobs is not None:
            self._logprobs = _joined(self._logprobs, logprobs)
        if text or logprobs or self._finish:
            yield {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": self._finish}

    def whole(self) -> Json:
        """See Choice."""
        return {
            "index": self.index,
            "text": self._text,
            "logprobs": self._logprobs,
            "finish_reason": self._finish,
        }

    def _legacy_logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> Json:
        """The four parallel lists of the completions interface."""
        found: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            text = self._tokenizer.decode([entry.token])
            found["tokens"].append(text)
            found["token_logprobs"].append(entry.logprob)
            found["top_logprobs"].append({self._tokenizer.decode([token]): value for token, value in entry.top})
            found["text_offset"].append(offset)
            offset += len(text)
        return found


class Answer:
    """All choices of one request while they run. Closing it aborts what has not ended."""

    def __init__(self, kind: str, model: str, choices: Sequence[Choice], booking: Booking) -> None:
        self._kind = kind
        self._model = model
        self._choices = choices
        self._booking = booking
        self._id = f"{'chatcmpl' if kind == 'chat.completion' else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def whole(self) -> Json:
        """The answer in one piece."""
        async for _ in self._entries():
            pass
        return self._envelope([choice.whole() for choice in self._choices], usage=self._usage())

    async def chunks(self, *, usage_chunk: bool) -> AsyncIterator[Json | None]:
        """The answer in pieces, each as soon as it is there; None after a nudge."""
        async for entries in self._entries():
            if entries is None:
                yield None
                continue
            for entry in entries:
                yield self._envelope([entry], piece=True)
        if usage_chunk:
            yield self._envelope([], piece=True, usage=self._usage())

    def nudge(self) -> None:
        """Give whoever iterates over the pieces a None."""
        self._booking.work.nudge()

    def close(self) -> None:
        """Abort every choice that still runs."""
        self._booking.close()

    async def _entries(self) -> AsyncIterator[list[Json] | None]:
        """What the outputs of all choices say, as they come. An answer's end is told when it is in the books."""
        unfinished = len(self._choices)
        try:
            async for told in self._booking.work:
                if told is None:
                    yield None
                    continue
                index, output = told
                entries = list(self._choices[index].chunks(output))
                self._booking.reasoning_tokens = sum(choice.reasoning_tokens for choice in self._choices)
                unfinished -= output.finish_reason is not None
                if not unfinished:
                    await self._booking.settle()
                yield entries
        except FinbackError:
            self.close()
            await self._booking.settle()
            raise
        finally:
            self.close()

    def _envelope(self, choices: list[Json], *, piece: bool = False, usage: Json | None = None) -> Json:
        chat = self._kind == "chat.completion"
        body = {
            "id": self._id,
            "object": "chat.completion.chunk" if piece and chat else self._kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        return body if usage is None else {**body, "usage": usage}

    def _usage(self) -> Json:
        """Tokens of the whole request, as they are booked."""
        taken = self._booking.taken
        return {
            "prompt_tokens": taken.prompt_tokens,
            "completion_tokens": taken.output_tokens,
            "total_tokens": taken.prompt_tokens + taken.output_tokens,
            "prompt_tokens_details": {"cached_tokens": taken.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": taken.reasoning_tokens},
            "prompt_cache_hit_tokens": taken.cached_tokens,
            "prompt_cache_miss_tokens": taken.prompt_tokens - taken.cached_tokens,
        }


class Served(Protocol):
    """What the dialect needs of a loaded model."""

    @property
    def name(self) -> str:
        """What requests call it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """From text to token ids."""

    @property
    def chat_format(self) -> ChatFormat | None:
        """None for a model that only continues text."""

    @property
    def defaults(self) -> SamplingParams:
        """What a request starts from."""

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""


async def start_chat(request: ChatRequest, model: Served, submit: Submit) -> Answer:
    """Hand a chat request to the engine; InvalidRequest before any work if it cannot run."""
    if model.chat_format is None:
        raise InvalidRequest(f"{model.name} has no chat format: use /v1/completions", parameter="model")
    thinking = request.wants_thinking
    tools = request.tools if request.tool_choice != "none" else None
    # Long conversations take a while to render and cut into tokens: other streams go on meanwhile.
    render = partial(model.chat_format.render, request.messages, tools=tools, thinking=thinking)
    pieces = await asyncio.to_thread(render)
    tokens = await asyncio.to_thread(model.tokenizer.encode_pieces, pieces)
    limit = request.max_completion_tokens or request.max_tokens
    params = request.sampling(model.defaults, max_tokens=limit, logprobs=request.logprobs_count)
    n = request.n or 1
    parsers = [model.chat_format.parser(thinking, prompt=pieces, tools=bool(tools)) for _ in range(n)]
    choices = [ChatChoice(i, parser, model.tokenizer) for i, parser in enumerate(parsers)]
    return Answer("chat.completion", request.model, choices, await submit(_jobs([tokens] * n, params), n))


async def start_completion(request: CompletionRequest, model: Served, submit: Submit) -> Answer:
    """Hand a plain completion request to the engine; InvalidRequest before any work if it cannot run."""
    n = request.n or 1
    prompts = [prompt for prompt in request.prompts() for _ in range(n)]
    tokenizer = model.tokenizer
    encode = partial(tokenizer.encode, bos=tokenizer.adds_bos)
    encoded = [await asyncio.to_thread(encode, p) if isinstance(p, str) else p for p in prompts]
    echoes = [(p if isinstance(p, str) else tokenizer.decode(p)) if request.echo else "" for p in prompts]
    limit = request.max_tokens or DEFAULT_COMPLETION_TOKENS
    params = request.sampling(model.defaults, max_tokens=limit, logprobs=request.logprobs)
    choices = [TextChoice(i, echo, tokenizer) for i, echo in enumerate(echoes)]
    return Answer("text_completion", request.model, choices, await submit(_jobs(encoded, params), n))


def _jobs(prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Job]:
    """One job for each prompt. Seeded choices of one prompt get neighbouring seeds, or they would all be equal."""
    seeds = [None if params.seed is None else _neighbour(params.seed, index) for index in range(len(prompts))]
    return [Job(prompt, replace(params, seed=seed)) for prompt, seed in zip(prompts, seeds, strict=True)]


def _neighbour(seed: int, index: int) -> int:
    return (seed + index) % 2**63 if index else seed


def _chat_logprob(entry: TokenLogprob, tokenizer: Tokenizer) -> Json:
    def one(token: int, logprob: float) -> Json:
        return {
            "token": tokenizer.decode([token]),
            "logprob": logprob,
            "bytes": list(tokenizer.token_bytes(token)),
        }

    return {**one(entry.token, entry.logprob), "top_logprobs": [one(*top) for top in entry.top]}


def _joined(total: Json | None, more: Json) -> Json:
    return more if total is None else {key: total[key] + more[key] for key in total}
