"""The Python face over a tiny model: exactly what scripts rely on."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from finback.api import Completion, LoadedModel, Piece, ToolCall
from finback.engine.request import SamplingParams, Usage
from finback.errors import EngineError, InvalidRequest, PromptTooLong
from finback.text import chat, stream
from tests.conftest import BOS, EOS, TinyModel

MESSAGES = [{"role": "user", "content": "Hi"}]


class BracketParser:
    """``[reasoning]`` then content; ``{name:arguments}`` is a tool call."""

    def __init__(self) -> None:
        self._inside = ""
        self._calls = -1

    def push(self, text: str) -> list[Any]:
        return [event for character in text for event in self._one(character)]

    def _one(self, c: str) -> list[Any]:
        if c in "[]{}:" and (c != ":" or self._inside == "{"):
            self._inside = {"[": "[", "{": "{", ":": ":"}.get(c, "")
            if c == "{":
                self._calls += 1
                return [stream.ToolCallStart(self._calls, f"call-{self._calls}", "look")]
            return []
        kinds = {"": stream.Content, "[": stream.Reasoning}
        if self._inside in kinds:
            return [kinds[self._inside](c)]
        return [stream.ToolCallArguments(self._calls, c)] if self._inside == ":" else []

    def flush(self) -> list[Any]:
        return []


class TinyChat:
    """Remembers what it was asked to render."""

    name = "tiny"
    supports_thinking = True
    default_thinking = False

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def render(self, messages: Any, **options: Any) -> list[Any]:
        self.asked = options
        return [chat.Piece(f"{message['role']}: {message['content']}\n", trusted=True) for message in messages]

    def parser(self, thinking: bool | None = None, **options: Any) -> BracketParser:
        return BracketParser()


@pytest.fixture
def loaded(make_engine: Callable[..., Any]) -> Callable[..., LoadedModel]:
    """``loaded(script=None, defaults=None, **settings)``."""

    def load(script: str | None = None, *, defaults: SamplingParams | None = None, **settings: Any) -> LoadedModel:
        return LoadedModel("tiny", make_engine(TinyModel(script=script), **settings), TinyChat(), defaults)

    return load


def test_generate_from_text(loaded) -> None:
    completion = loaded("héllo").generate("abc", temperature=0)
    assert completion == Completion(
        text="héllo",
        tokens=[*"héllo".encode(), EOS],
        finish_reason="stop",
        usage=Usage(prompt_tokens=4, completion_tokens=7),  # BOS comes first
        logprobs=None,
    )


def test_generate_from_tokens_takes_them_as_they_are(loaded) -> None:
    for prompt in ([97, 98], (97, 98), np.array([97, 98])):
        assert loaded("x").generate(prompt, temperature=0).usage.prompt_tokens == 2


def test_text_and_its_tokens_are_the_same_prompt(loaded) -> None:
    model = loaded()
    text = model.generate("abc", seed=1, max_tokens=20)
    assert text == model.generate([BOS, *b"abc"], seed=1, max_tokens=20)
    assert text != model.generate("abc", seed=2, max_tokens=20)


def test_every_option_is_honoured(loaded) -> None:
    model = loaded("abcdef")
    assert model.generate("x", temperature=0, max_tokens=2).text == "ab"
    assert model.generate("x", temperature=0, stop="cd").text == "ab"
    assert model.generate("x", temperature=0, stop=["zz", "e"]).text == "abcd"
    assert model.generate("x", temperature=0, stop_token_ids=[ord("b")]).text == "a"
    assert model.generate("x", temperature=0, logit_bias={ord("z"): 100}, max_tokens=3).text == "zzz"
    assert model.generate("x", temperature=0, max_tokens=9, ignore_eos=True).usage.completion_tokens == 9


def test_logprobs_come_one_per_token_when_asked(loaded) -> None:
    completion = loaded("€uro").generate("x", temperature=0, logprobs=2)
    assert completion.logprobs is not None
    assert [entry.token for entry in completion.logprobs] == completion.tokens
    assert all(len(entry.top) == 2 for entry in completion.logprobs)
    assert loaded("a").generate("x", temperature=0, logprobs=0).logprobs is None


def test_max_tokens_has_a_default_that_can_be_lifted(loaded) -> None:
    model = loaded("x" * 400)
    assert model.generate("a", temperature=0).usage.completion_tokens == 256
    assert model.generate("a", temperature=0, max_tokens=None).text == "x" * 400


def test_the_makers_settings_are_the_defaults(loaded) -> None:
    model = loaded(defaults=SamplingParams(temperature=0))
    assert model.generate("a", max_tokens=9).tokens == model.generate("a", max_tokens=9, seed=5).tokens
    sampled = [model.generate("a", max_tokens=9, seed=seed, temperature=1.0).tokens for seed in range(3)]
    assert sampled[0] != sampled[1] != sampled[2]


def test_stream_is_generate_in_pieces(loaded) -> None:
    model = loaded("one €2 three")
    whole = model.generate("x", temperature=0, logprobs=1, stop=" t")
    pieces = list(model.stream("x", temperature=0, logprobs=1, stop=" t"))
    assert "".join(pieces) == "".join(piece.text for piece in pieces) == whole.text == "one €2"
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens
    assert [entry for piece in pieces for entry in piece.logprobs] == whole.logprobs
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert pieces[-1].usage == whole.usage
    assert all(pieces[:-1]), "a piece without text that is not the last"


def test_pieces_are_strings() -> None:
    piece = Piece("abc", finish_reason=None)
    assert piece == "abc"
    assert type(piece.text) is str
    assert f"{piece}!" == "abc!"


def test_chat(loaded) -> None:
    model = loaded("[let me see]Hello")
    answer = model.chat(MESSAGES, temperature=0)
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("Hello", "let me see", "stop")
    assert answer.usage.prompt_tokens == len("user: Hi\n")
    assert model.chat_format.asked == {"tools": None, "thinking": None}


def test_chat_passes_tools_and_thinking(loaded) -> None:
    model = loaded("ok")
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert model.chat(MESSAGES, tools=tools, thinking=True, temperature=0).reasoning is None
    assert model.chat_format.asked == {"tools": tools, "thinking": True}


def test_chat_stream_is_chat_in_pieces(loaded) -> None:
    model = loaded("[why]Because €")
    pieces = list(model.chat_stream(MESSAGES, temperature=0))
    assert "".join(pieces) == "Because €"
    assert "".join(piece.reasoning for piece in pieces) == "why"
    assert pieces[0].reasoning == "w"
    assert pieces[0] == ""
    assert pieces[-1].finish_reason == "stop"


def test_tool_calls(loaded) -> None:
    answer = loaded('{look:"a"}{look:"bc"}').chat(MESSAGES, temperature=0)
    assert answer.finish_reason == "tool_calls"
    assert answer.tool_calls == (ToolCall("call-0", "look", '"a"'), ToolCall("call-1", "look", '"bc"'))
    cut = loaded('{look:"a"}').chat(MESSAGES, temperature=0, max_tokens=5)
    assert cut.finish_reason == "length"


def test_chat_needs_a_chat_format(make_engine) -> None:
    model = LoadedModel("base", make_engine())
    for ask in (model.chat, model.chat_stream):
        with pytest.raises(InvalidRequest, match="no chat format"):
            ask(MESSAGES)


def test_logits(loaded) -> None:
    model = loaded()
    logits = model.logits([BOS, 1, 2])
    assert logits.shape == (3, 258)
    assert logits.dtype == np.float32
    assert np.array_equal(logits, model.logits([BOS, 1, 2], chunk=1))
    assert not np.array_equal(logits, model.logits([BOS, 1, 2], prompt=1))
    greedy = model.generate([BOS, 1, 2], temperature=0, max_tokens=1)
    assert greedy.tokens == [int(logits[-1].argmax())]


def test_what_a_model_knows_of_itself(loaded) -> None:
    model = loaded(context=100)
    assert model.config.vocab_size == 258
    assert model.context == model.settings.context == 100
    assert model.tokenizer.decode(model.tokenizer.encode("añb")) == "añb"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {999: 1}}, "logit_bias"),
    ],
)
def test_bad_values_are_refused_at_the_call(loaded, options: dict[str, Any], field: str) -> None:
    model = loaded("x")
    asks = [model.generate, model.stream, lambda _, **o: model.chat(MESSAGES, **o)]
    asks.append(lambda _, **o: model.chat_stream(MESSAGES, **o))  # not at the first piece
    for ask in asks:
        with pytest.raises(InvalidRequest, match=field) as caught:
            ask("a", **options)
        assert caught.value.parameter == field


def test_unknown_options_are_pythons_own_error(loaded) -> None:
    model = loaded("x")
    for ask in (model.generate, model.stream):
        with pytest.raises(TypeError, match="temprature"):
            ask("a", temprature=1)
    for ask in (model.chat, model.chat_stream):
        with pytest.raises(TypeError, match="temprature"):
            ask(MESSAGES, temprature=1)


@pytest.mark.parametrize("prompt", [[], [258], [-1], [0.5], None, {"a": 1}])
def test_bad_prompts_are_refused_at_the_call(loaded, prompt: Any) -> None:
    model = loaded("x")
    for ask in (model.generate, model.stream, model.logits):
        with pytest.raises(InvalidRequest):
            ask(prompt)


def test_a_prompt_that_is_too_long(loaded) -> None:
    model = loaded("x", context=10)
    with pytest.raises(PromptTooLong, match="11 tokens"):
        model.generate("x" * 10)
    with pytest.raises(PromptTooLong, match="at most 9"):
        model.chat([{"role": "user", "content": "y" * 10}])


def test_an_abandoned_stream_ends_its_request(loaded) -> None:
    model = loaded("x" * 100)
    for ask in (lambda: model.stream("a", temperature=0), lambda: model.chat_stream(MESSAGES, temperature=0)):
        pieces = ask()
        next(pieces)
        assert model.engine.num_running == 1
        del pieces
        gc.collect()
        assert model.engine.num_running == 0
    model.engine.check_integrity()


def test_a_stream_can_be_left_for_another_request(loaded) -> None:
    model = loaded("abc")
    heard = [(piece, model.generate("y", temperature=0).text) for piece in model.stream("x", temperature=0)]
    assert heard == [("a", "abc"), ("b", "abc"), ("c", "abc"), ("", "abc")]


def test_errors_in_the_middle_are_raised(make_engine) -> None:
    model = LoadedModel("tiny", make_engine(TinyModel(poison=66)))
    with pytest.raises(EngineError, match="NaN"):
        model.generate([66])
    assert model.generate([1], max_tokens=2, logit_bias={66: -100}).usage.completion_tokens == 2


def test_closing(loaded) -> None:
    with loaded("abc") as model:
        pieces = model.stream("x", temperature=0)
        next(pieces)
    model.close()
    for ask in (
        lambda: next(pieces),
        lambda: model.generate("x"),
        lambda: model.logits([1]),
        lambda: model.chat(MESSAGES),
    ):
        with pytest.raises(EngineError, match="closed"):
            ask()
    assert model.config.vocab_size == 258
