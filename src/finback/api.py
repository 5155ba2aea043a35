"""The Python face: load a model, ask it, close it.

    with finback.load("smollm2:135m-q4_1") as model:
        print(model.generate("The whale", max_tokens=20, temperature=0).text)
        for piece in model.chat_stream([{"role": "user", "content": "Hello"}]):
            print(piece, end="")

A model may be used from several threads: they take turns at stepping one engine, so their requests run in the same
batches. Bad values are refused when the method is called, before any work. A stream that is closed or dropped ends
its request.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from finback import __version__, hardware, hub, kernels, models
from finback.config import Settings, load_settings
from finback.engine.defaults import published_defaults
from finback.engine.engine import Engine
from finback.engine.kv_store import PrefixStore, open_store
from finback.engine.memory import CachePlan, memory_for_cache, plan_cache
from finback.engine.request import FinishReason, SamplingParams, StepOutput, TokenLogprob, Usage
from finback.engine.turns import Turns
from finback.errors import InvalidRequest
from finback.text.chat import ChatFormat, chat_format
from finback.text.load import load_tokenizer
from finback.text.stream import Content, Event, Reasoning, StreamParser, ToolCallArguments, ToolCallStart
from finback.text.tokenizer import Tokenizer
from finback.weights.checkpoint import Checkpoint, open_checkpoint
from finback.weights.config import ModelConfig
from finback.weights.pack import load_weights

DEFAULT_MAX_TOKENS = 256  # of generate and stream; a chat answer ends by itself
PACKED_BYTES = {"q8": 1.0625, "q4": 0.5625}  # per parameter

Message = Mapping[str, Any]
Reason = FinishReason | Literal["tool_calls"]


class Sampling(TypedDict, total=False):
    """What every asking method takes besides its prompt. What is left out is as the model's makers publish it."""

    max_tokens: int | None  # None: until the context is full
    temperature: float  # 0: always the most likely token
    top_k: int  # 0: all
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None  # None: a fresh one each time
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int  # 0: none; n: of each token and of the n most likely ones in its place
    logit_bias: Mapping[int, float]


class ToolCall(NamedTuple):
    """A function that the model asks to be called; ``arguments`` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. ``tokens`` are all that were chosen, also the one that ended it and is not in ``text``."""

    text: str
    tokens: list[int]
    finish_reason: Reason
    usage: Usage
    logprobs: list[TokenLogprob] | None = None  # one for each of ``tokens``
    reasoning: str | None = None  # of a chat answer that reasons
    tool_calls: tuple[ToolCall, ...] = ()


class Piece(str):
    """A piece of an answer: a string, and what came with it. The last one has ``finish_reason`` and ``usage``."""

    reasoning: str  # beside the text, in a chat answer that reasons
    tokens: list[int]
    logprobs: list[TokenLogprob]  # one for each of ``tokens`` when asked for
    tool_calls: tuple[ToolCall, ...]  # with the last piece
    finish_reason: Reason | None
    usage: Usage | None

    def __new__(cls, text: str, **fields: Any) -> Piece:
        """A string that carries ``fields``."""
        piece = super().__new__(cls, text)
        piece.__dict__.update(fields)
        return piece

    @property
    def text(self) -> str:
        """The piece as a plain string."""
        return str(self)


class LoadedModel:
    """A model that is ready to answer. Close it, or use it as a context manager."""

    def __init__(
        self, name: str, engine: Engine, chat_format: ChatFormat | None = None, defaults: SamplingParams | None = None
    ) -> None:
        """``chat_format``: None for a model that only continues text; ``defaults``: settings a request starts from."""
        self.name = name
        self.engine = engine
        self.chat_format = chat_format
        self.defaults = defaults or SamplingParams()
        self._turns = Turns(engine)

    @property
    def config(self) -> ModelConfig:
        """The model's geometry."""
        return self.engine.config

    @property
    def settings(self) -> Settings:
        """The settings in force, with nothing left to be chosen."""
        return self.engine.settings

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.engine.context

    @property
    def tokenizer(self) -> Tokenizer:
        """From text to token ids (``encode``) and back (``decode``)."""
        return self.engine.tokenizer

    def logits(
        self, tokens: Sequence[int], *, chunk: int | None = None, prompt: int | None = None
    ) -> NDArray[np.float32]:
        """The model's logits after each token: float32 [len(tokens), vocabulary].

        ``chunk`` tokens are computed at a time. Tokens from index ``prompt`` on are computed one by one, as if the
        model had written them; None: all are given.
        """
        return self._turns.logits(tokens, chunk=chunk, prompt=prompt)

    def generate(self, prompt: str | Sequence[int], **sampling: Unpack[Sampling]) -> Completion:
        """Continue ``prompt`` (text or token ids). ``max_tokens`` is 256 unless given; see :class:`Sampling`."""
        return _whole(self.stream(prompt, **sampling))

    def stream(self, prompt: str | Sequence[int], **sampling: Unpack[Sampling]) -> Iterator[Piece]:
        """As :meth:`generate`, piece by piece."""
        params = self._params(sampling, max_tokens=DEFAULT_MAX_TOKENS)
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, bos=self.tokenizer.adds_bos)
        return _pieces(self._turns.start(prompt, params), _PlainReader())

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        **sampling: Unpack[Sampling],
    ) -> Completion:
        """Answer ``messages`` (OpenAI's shape), to the context's end if need be. ``thinking``: None leaves it open."""
        return _whole(self.chat_stream(messages, tools=tools, thinking=thinking, **sampling))

    def chat_stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        **sampling: Unpack[Sampling],
    ) -> Iterator[Piece]:
        """As :meth:`chat`, piece by piece."""
        params = self._params(sampling, max_tokens=None)
        if self.chat_format is None:
            raise InvalidRequest(f"{self.name} has no chat format", hint="it continues text: use generate or stream")
        prompt = self.chat_format.render(messages, tools=tools, thinking=thinking)
        parser = self.chat_format.parser(thinking, prompt=prompt, tools=bool(tools))
        return _pieces(self._turns.start(self.tokenizer.encode_pieces(prompt), params), _ChatReader(parser))

    def close(self) -> None:
        """End all requests and give the memory back. A second call does nothing."""
        self._turns.close()

    def renew(self) -> Engine:
        """Another engine on the same weights, in place of one that failed; the old one's requests are gone."""
        self.engine = self.engine.renewed()
        self._turns = Turns(self.engine)
        return self.engine

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _params(self, sampling: Sampling, *, max_tokens: int | None) -> SamplingParams:
        given: dict[str, Any] = {"max_tokens": max_tokens, **sampling}
        if isinstance(given.get("stop"), str):
            given["stop"] = (given["stop"],)
        if given.get("logprobs") == 0:
            given["logprobs"] = None
        return replace(self.defaults, **given)


def load(
    name_or_path: str | Path,
    *,
    threads: int | None = None,
    context: int | None = None,
    format: str | None = None,
    settings: Settings | None = None,
) -> LoadedModel:
    """Load a model by its name or path.

    ``threads``: None takes every core; it holds for the whole process. ``context``: tokens of a request; None takes
    the model's own, up to 32768 and to what memory allows. ``format``: "q8" or "q4" packs the weights narrower.
    ``settings``: instead of those of the environment.
    """
    settings = (settings or load_settings()).override(threads=threads, context=context, format=format)
    return _load(hub.resolve(name_or_path, settings), str(name_or_path), settings)


def _load(path: Path, name: str, settings: Settings) -> LoadedModel:
    """Cheap checks first; the weights are read when everything else is known to be sound."""
    checkpoint = open_checkpoint(path)
    config = ModelConfig.from_checkpoint(checkpoint)
    memory_bytes = memory_for_cache(_weights_bytes(checkpoint, config, settings.format))
    plan = plan_cache(config, settings, memory_bytes)
    defaults = published_defaults(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    chat = chat_format(checkpoint, tokenizer)
    threads = settings.threads or hardware.usable_cores()
    kernels.set_threads(threads)
    packs = settings.home / "packs"
    weights = load_weights(checkpoint, config, format=settings.format, cache_dir=packs, threads=threads)
    if weights.nbytes < hardware.memory().available_bytes:
        weights.bring_in()
    model = models.build(config, weights)
    store = _prefix_store(checkpoint, settings, plan)
    engine = Engine(model, tokenizer, settings.override(threads=threads), plan=plan, store=store)
    return LoadedModel(name, engine, chat, defaults)


def _prefix_store(checkpoint: Checkpoint, settings: Settings, plan: CachePlan) -> PrefixStore | None:
    """Where computed beginnings survive, if they are to."""
    if not settings.prefix_store_mib or not plan.most_kept:
        return None
    # What the bits in the cache depend on, besides the tokens: weights, types, kernels.
    facts = (checkpoint.fingerprint(), settings.format or "published", plan.kv_dtype, kernels.isa(), __version__)
    return open_store(settings.home / "prefixes", limit_bytes=settings.prefix_store_mib << 20, facts=facts)


def _weights_bytes(checkpoint: Checkpoint, config: ModelConfig, format: str | None) -> int:
    """Memory that the weights will take; an estimate when they are packed narrower."""
    if format is None:
        return checkpoint.nbytes
    return int(config.parameters.total * PACKED_BYTES[format])


class _Reading(NamedTuple):
    """What the text of an output says."""

    content: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class _PlainReader:
    """Takes text as it is."""

    def read(self, output: StepOutput) -> _Reading:
        return _Reading(output.text)


class _ChatReader:
    """Separates reasoning, content and tool calls."""

    def __init__(self, parser: StreamParser) -> None:
        self._parser = parser
        self._calls: list[ToolCall] = []

    def read(self, output: StepOutput) -> _Reading:
        """What the text adds; tool calls are complete with the last output."""
        events = list(self._parser.push(output.text))
        if output.finish_reason is not None:
            events += self._parser.flush()
        self._collect_calls(events)
        content = "".join(event.text for event in events if isinstance(event, Content))
        reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
        return _Reading(content, reasoning, tuple(self._calls))

    def _collect_calls(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, ToolCallStart):
                self._calls.append(ToolCall(event.id, event.name, ""))
            elif isinstance(event, ToolCallArguments):
                call = self._calls[event.index]
                self._calls[event.index] = call._replace(arguments=call.arguments + event.text)


def _pieces(outputs: Generator[StepOutput], reader: _PlainReader | _ChatReader) -> Iterator[Piece]:
    """Outputs as pieces; tokens that show no text yet come with the next piece that does."""
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    with closing(outputs):
        for output in outputs:
            tokens += output.tokens
            logprobs += output.logprobs or ()
            reading = reader.read(output)
            if reading.content or reading.reasoning or output.finish_reason is not None:
                yield _piece(output, reading, tokens, logprobs)
                tokens, logprobs = [], []


def _piece(output: StepOutput, reading: _Reading, tokens: list[int], logprobs: list[TokenLogprob]) -> Piece:
    reason = "tool_calls" if reading.calls and output.finish_reason == "stop" else output.finish_reason
    return Piece(
        reading.content,
        reasoning=reading.reasoning,
        tokens=tokens,
        logprobs=logprobs,
        tool_calls=reading.calls if reason is not None else (),
        finish_reason=reason,
        usage=output.usage,
    )


def _whole(pieces: Iterator[Piece]) -> Completion:
    """The sum of an answer's pieces."""
    every = list(pieces)
    last = every[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    logprobs = [entry for piece in every for entry in piece.logprobs]
    return Completion(
        text="".join(every),
        tokens=[token for piece in every for token in piece.tokens],
        finish_reason=last.finish_reason,
        usage=last.usage,
        logprobs=logprobs or None,
        reasoning="".join(piece.reasoning for piece in every) or None,
        tool_calls=last.tool_calls,
    )
