"""Conversations and tools: what is accepted, and what is refused with the place where it is wrong."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finback.errors import InvalidRequest
from finback.text.messages import MAX_DEPTH, MAX_NODES, MAX_TOOLS, read_messages, read_tools

TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look", **function}}


@pytest.mark.parametrize(
    ("messages", "parameter"),
    [
        ("Hi", "messages"),
        ({"role": "user", "content": "Hi"}, "messages"),
        ([], "messages"),
        (["Hi"], "messages[0]"),
        ([{"content": "Hi"}], "messages[0].role"),
        ([{"role": "robot", "content": "Hi"}], "messages[0].role"),
        ([{"role": ["user"], "content": "Hi"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": b"Hi"}], "messages[0].content"),
        ([{"role": "user", "content": "a\ud800"}], "messages[0].content"),
        ([{"role": "user", "content": ["Hi"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant"}], "messages[1].content"),
        ([{"role": "user", "content": "a", "prefix": True}], "messages[0].prefix"),
        ([{"role": "user", "content": "a", "tool_calls": [CALL]}], "messages[0].tool_calls"),
        ([{"role": "user", "content": "a", "name": 1}], "messages[0].name"),
        ([{"role": "assistant", "content": "a", "reasoning_content": []}], "messages[0].reasoning_content"),
        ([{"role": "assistant", "tool_calls": "look"}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": ["look"]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [CALL | {"type": "x"}]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [{"id": "c"}]}], "messages[0].tool_calls[0].function"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": " ", "arguments": ""}}]}],
            "messages[0].tool_calls[0].function.name",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([{"role": "tool", "content": "a", "tool_call_id": 1}], "messages[0].tool_call_id"),
    ],
)
def test_bad_messages(messages: Any, parameter: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        read_messages(messages)
    assert error.value.parameter == parameter
    assert error.value.message.startswith(parameter)


@pytest.mark.parametrize(
    ("tools", "parameter"),
    [
        ("look", "tools"),
        ([TOOL] * (MAX_TOOLS + 1), "tools"),
        (["look"], "tools[0]"),
        ([{"function": {"name": "look"}}], "tools[0]"),
        ([{"type": "function"}], "tools[0].function"),
        ([TOOL, _tool(name="")], "tools[1].function.name"),
        ([_tool(name="a b")], "tools[0].function.name"),
        ([_tool(name="x" * 65)], "tools[0].function.name"),
        ([_tool(name="<｜User｜>")], "tools[0].function.name"),
        ([_tool(name="look\n")], "tools[0].function.name"),
        ([_tool(description=1)], "tools[0].function.description"),
        ([_tool(parameters=[])], "tools[0].function.parameters"),
        ([_tool(parameters={"a": float("nan")})], "tools[0]"),
        ([_tool(parameters={"a": 1 << 70})], "tools[0]"),
        ([_tool(parameters={"a": {1, 2}})], "tools[0]"),
        ([_tool(parameters={1: 2})], "tools[0]: a key"),
        ([_tool(parameters={"a": "\udfff"})], "tools[0]"),
        ([_tool(parameters={"a": _deep(MAX_DEPTH)})], "tools[0]"),
        ([_tool(parameters={"a": _deep(100_000)})], "tools[0]"),
        ([_tool(parameters={"enum": [0] * (MAX_NODES + 1)})], "tools[0]"),
    ],
)
def test_bad_tools(tools: Any, parameter: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        read_tools(tools)
    assert error.value.parameter == parameter


def test_an_answer_as_clients_echo_it() -> None:
    echoed = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "reasoning_content": "hm",
    }
    (message,) = read_messages([echoed])
    assert (message.role, message.content, message.reasoning, message.tool_calls) == ("assistant", "Hi", "hm", ())


def test_text_parts_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_messages([{"role": "user", "content": parts}])[0].content == "a\nb"


def test_developers_are_the_system() -> None:
    assert read_messages([{"role": "developer", "content": "a"}])[0].role == "system"


def test_calls_need_no_content() -> None:
    (message,) = read_messages([{"role": "assistant", "content": None, "tool_calls": [CALL]}])
    assert (message.content, message.text) == (None, "")
    assert [(call.id, call.name, call.arguments) for call in message.tool_calls] == [("c", "look", "{}")]


def test_tools_as_they_came() -> None:
    (tool,) = read_tools([TOOL])
    assert (tool.name, tool.description, tool.parameters, tool.source) == ("look", "d", {"type": "object"}, TOOL)
    (bare,) = read_tools([_tool()])
    assert (bare.description, bare.parameters) == ("", {})
    assert read_tools(None) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=50)
@given(value=st.lists(JSON | st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), JSON)))
def test_anything_is_read_or_refused(value: Any) -> None:
    for read in (read_messages, read_tools):
        with contextlib.suppress(InvalidRequest):
            read(value)
