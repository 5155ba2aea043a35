"""The unmodified ``openai`` client against a running server: chat, stream, completions, models, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(serve: Callable[..., Any], make_tiny_model: Callable[..., Any]) -> Iterator[openai.OpenAI]:
    running = serve(make_tiny_model(script="Whales sing."))
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def free_client(serve: Callable[..., Any]) -> Iterator[openai.OpenAI]:
    """Over a model whose answers depend on the prompt and the sampling."""
    with openai.OpenAI(base_url=f"{serve().url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HELLO)
    assert reply.choices[0].message.content == "Whales sing."
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.object == "chat.completion"
    assert reply.usage.prompt_tokens == len("user: hello\n")
    assert reply.usage.completion_tokens == len("Whales sing.") + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_chat_stream_says_the_same(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True, stream_options=options)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Whales sing."
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len("Whales sing.") + 1
    assert len({c.id for c in chunks}) == 1


def test_limits_and_stops(client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> Any:
        return client.chat.completions.create(model="tiny", messages=HELLO, **fields).choices[0]

    assert (ask(max_tokens=6).message.content, ask(max_tokens=6).finish_reason) == ("Whales", "length")
    assert ask(max_completion_tokens=2).message.content == "Wh"
    assert (ask(stop="sing").message.content, ask(stop="sing").finish_reason) == ("Whales ", "stop")
    assert ask(stop=["zzz", "les"]).message.content == "Wha"


def test_reasoning_has_its_own_field(serve: Callable[..., Any], make_tiny_model: Callable[..., Any]) -> None:
    running = serve(make_tiny_model(script="I muse</think>Yes."))
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused") as client:
        body = {"thinking": {"type": "enabled"}}
        reply = client.chat.completions.create(model="tiny", messages=HELLO, extra_body=body)
        assert reply.choices[0].message.content == "Yes."
        assert reply.choices[0].message.reasoning_content == "I muse"
        assert reply.usage.completion_tokens_details.reasoning_tokens >= len("I muse")
        chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, extra_body=body, stream=True))
        deltas = [c.choices[0].delta for c in chunks]
        assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "I muse"
        assert "".join(d.content or "" for d in deltas) == "Yes."


def test_logprobs(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 5}
    entries = client.chat.completions.create(**fields).choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == "Whale"
    assert [bytes(entry.bytes).decode() for entry in entries] == list("Whale")
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
    assert all(entry.top_logprobs[0].token == entry.token for entry in entries)
    chunks = client.chat.completions.create(**fields, stream=True)
    streamed = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert streamed == entries


def test_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="Once", max_tokens=50)
    assert reply.choices[0].text == "Whales sing."
    assert reply.object == "text_completion"
    assert client.completions.create(model="tiny", prompt="Once").usage.completion_tokens == 13  # fewer than 16: EOS
    assert client.completions.create(model="tiny", prompt="Once", max_tokens=3, echo=True).choices[0].text == "OnceWha"
    several = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage.prompt_tokens == 2 * 2  # two prompts, each BOS and a letter, counted once
    ids = client.completions.create(model="tiny", prompt=[72, 105], max_tokens=4, logprobs=1)
    assert ids.choices[0].logprobs.tokens == list("Whal")
    assert ids.choices[0].logprobs.text_offset == [0, 1, 2, 3]
    streamed = client.completions.create(model="tiny", prompt="Once", max_tokens=50, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "Whales sing."


def test_seed_and_n(free_client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> list[str]:
        found = free_client.completions.create(model="tiny", prompt="abc", max_tokens=20, temperature=1.5, **fields)
        return [choice.text for choice in found.choices]

    assert ask(seed=5) == ask(seed=5)
    assert ask(seed=5) != ask(seed=6)
    three = ask(seed=5, n=3)
    assert len(set(three)) == 3
    assert three[0] == ask(seed=5)[0]


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"store": True}, "store"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
        ({"messages": []}, "messages"),
    ],
)
def test_bad_fields_are_named(client: openai.OpenAI, fields: dict[str, Any], parameter: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": HELLO, **fields})
    assert caught.value.body["param"] == parameter
    assert caught.value.body["type"] == "invalid_request_error"


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    assert caught.value.body["code"] == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 600}])
    assert caught.value.body["code"] == "context_length_exceeded"
    assert "512" in caught.value.body["message"]
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt=[99999])


def test_an_engine_failure_is_a_server_error(serve: Callable[..., Any], make_tiny_model: Callable[..., Any]) -> None:
    running = serve(make_tiny_model(poison=ord("!")))
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model="tiny", prompt="boo!", max_tokens=3)
        assert client.completions.create(model="tiny", prompt="fine", max_tokens=3).usage.completion_tokens == 3
