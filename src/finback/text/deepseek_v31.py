"""DeepSeek V3.1 (also Terminus and V3.2-Exp): reasoning on or off, told by the mark after the assistant's tag.

Earlier answers are always shown as given without reasoning. After a tool's result the model goes on in its own turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from finback.text.markup import (
    ASSISTANT,
    CALL,
    CALLS,
    END_CALL,
    END_CALLS,
    END_OUTPUT,
    END_THINK,
    OUTPUT,
    SEPARATOR,
    THINK,
    USER,
)
from finback.text.messages import Message, Tool, ToolCall
from finback.text.prompt import Prompt

_HOW_TO_CALL = (
    "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n",
    f"{CALLS}{CALL}tool_call_name{SEPARATOR}tool_call_arguments{END_CALL}{{additional_tool_calls}}{END_CALLS}\n\n",
    "Where:\n\n"
    "- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
    "- For multiple tool calls, chain them directly without separators or spaces",
)


def encode_v31(
    messages: Sequence[Message], tools: Sequence[Tool], *, bos: str, eos: str, thinking: bool, answer: bool
) -> Prompt:
    """The conversation; with ``answer``, up to where the model's answer begins."""
    prompt = Prompt()
    prompt.markup(bos)
    system = "\n\n".join(message.text for message in messages if message.role == "system")
    prompt.text(system)
    if tools:
        prompt.markup("\n\n" if system else "")
        _describe(prompt, tools)
    before = ""  # the role of the message before
    for message in messages:
        if message.role != "system":
            _encode_message(prompt, message, before, eos)
            before = message.role
    if answer and before == "user":
        prompt.markup(ASSISTANT, THINK if thinking else END_THINK)
    return prompt


def _describe(prompt: Prompt, tools: Sequence[Tool]) -> None:
    """The tools as the model's card lists them, after what the system prompt says."""
    prompt.markup("## Tools\nYou have access to the following tools:\n\n")
    for tool in tools:
        parameters = json.dumps(tool.parameters, ensure_ascii=False)
        prompt.text(f"### {tool.name}\nDescription: {tool.description}\n\nParameters: {parameters}\n\n")
    prompt.markup(*_HOW_TO_CALL)


def _encode_message(prompt: Prompt, message: Message, before: str, eos: str) -> None:
    if message.role == "user":
        prompt.markup(USER)
        prompt.text(message.text)
    elif message.role == "assistant":
        if before == "user":
            prompt.markup(ASSISTANT, END_THINK)
        prompt.text(message.text if message.tool_calls or before == "tool" else _without_reasoning(message.text))
        _encode_calls(prompt, message.tool_calls)
        prompt.markup(eos)
    else:
        prompt.markup(OUTPUT)
        prompt.text(message.text)
        prompt.markup(END_OUTPUT)


def _without_reasoning(text: str) -> str:
    return text.split(END_THINK, 1)[-1]


def _encode_calls(prompt: Prompt, calls: Sequence[ToolCall]) -> None:
    for index, call in enumerate(calls):
        prompt.markup("" if index else CALLS, CALL)
        prompt.text(call.name)
        prompt.markup(SEPARATOR)
        prompt.text(call.arguments)
        prompt.markup(END_CALL)
    if calls:
        prompt.markup(END_CALLS)
