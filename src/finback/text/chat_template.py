"""Chat by the template that a model's files carry, for families that have no encoding of their own here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from finback.errors import InvalidRequest
from finback.text.added import Piece
from finback.text.barriers import Barriers, take_out, unused_character
from finback.text.jinja import TemplateRenderer
from finback.text.markup import CALLS, END_THINK, TAG_CALL, THINK
from finback.text.messages import Message, ToolCall, check_json, read_messages, read_tools
from finback.text.prompt import PROBE, opens_reasoning
from finback.text.reasoning import ReasoningSplitter
from finback.text.stream import StreamParser
from finback.text.tokenizer import Tokenizer
from finback.text.tool_calls import CallParser, DeepSeekCalls, TaggedCalls

_THINKING_VARIABLES = ("enable_thinking", "thinking")


class TemplateChat:
    """The chat format of a template. ``with_tools``: another template, for requests with tools."""

    name = "template"

    def __init__(self, template: str, tokenizer: Tokenizer, *, with_tools: str | None = None) -> None:
        self._template = template
        self._with_tools = with_tools or template
        self._tokens = {
            "bos_token": tokenizer.text_of(tokenizer.bos_id),
            "eos_token": tokenizer.text_of(tokenizer.eos_id),
        }
        self._barriers = Barriers(tokenizer.control_texts)
        self._renderer = TemplateRenderer()
        self._switch = next((name for name in _THINKING_VARIABLES if name in template), None)
        self.supports_thinking = END_THINK in template or THINK in template

    @property
    def default_thinking(self) -> bool:
        """Whether the model reasons unless told otherwise."""
        return self.supports_thinking and not _closes_reasoning(self.render(PROBE))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        generation_prompt: bool = True,
    ) -> list[Piece]:
        """The prompt for ``messages``. A control token in what users wrote is taken as plain text."""
        offered = read_tools(tools)
        template = self._with_tools if offered else self._template
        if offered and "tools" not in template:
            raise InvalidRequest("this model's chat template knows no tools", parameter="tools")
        users = {
            "messages": [_as_data(message, END_THINK in template) for message in read_messages(messages)],
            "tools": [dict(tool.source) for tool in offered] or None,
        }
        barrier = unused_character([template, json.dumps(users, ensure_ascii=False), *self._tokens.values()])
        variables = {
            **self._barriers.put(users, barrier),
            "add_generation_prompt": generation_prompt,
            **{name: text for name, text in self._tokens.items() if text},
            **self._thinking(thinking),
        }
        return take_out(self._renderer.render(template, variables), barrier)

    def parser(
        self, thinking: bool | None = None, *, prompt: Sequence[Piece] | None = None, tools: bool = True
    ) -> StreamParser:
        """Reads the answer to ``prompt``; without a prompt, to any that ends with a user's message."""
        if prompt is None and self.supports_thinking:
            prompt = self.render(PROBE, thinking=thinking)
        reasoning = ReasoningSplitter(opened=opens_reasoning(prompt or ())) if self.supports_thinking else None
        return StreamParser(reasoning, self._calls() if tools else None)

    def _thinking(self, thinking: bool | None) -> dict[str, bool]:
        if thinking is None:
            return {}
        if self._switch is None:
            if thinking == self.supports_thinking:
                return {}
            state = "always reasons" if self.supports_thinking else "does not reason"
            raise InvalidRequest(f"this model {state}", parameter="thinking")
        return dict.fromkeys(_THINKING_VARIABLES, thinking)

    def _calls(self) -> CallParser | None:
        if TAG_CALL in self._with_tools:
            return TaggedCalls()
        if CALLS in self._with_tools:
            return DeepSeekCalls(fenced="```json" in self._with_tools)
        return None


def _closes_reasoning(pieces: Sequence[Piece]) -> bool:
    return bool(pieces) and pieces[-1].text.rstrip().endswith(END_THINK)


def _as_data(message: Message, reasons: bool) -> dict[str, Any]:
    """A message as templates expect it. Reasoning inside an earlier answer is put where templates look for it, because
    they could not find its marks behind barriers.
    """
    content, reasoning = message.content, message.reasoning
    if reasons and message.role == "assistant" and reasoning is None and END_THINK in message.text:
        before, _, content = message.text.rpartition(END_THINK)
        content = content.lstrip("\n")
        reasoning = before.split(END_THINK)[0].rstrip("\n").rpartition(THINK)[2].lstrip("\n")
    data = {
        "name": message.name,
        "reasoning_content": reasoning,
        "tool_call_id": message.tool_call_id,
        "tool_calls": [_call_as_data(call) for call in message.tool_calls] or None,
    }
    return {"role": message.role, "content": content} | {key: value for key, value in data.items() if value is not None}


def _call_as_data(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _arguments_as_data(call.arguments)}
    return {"type": "function", "id": call.id, "function": function}


def _arguments_as_data(arguments: str) -> Any:
    """Templates expect an object; what is none stays text."""
    try:
        value = json.loads(arguments)
        check_json(value, "arguments")
    except (ValueError, RecursionError, InvalidRequest):
        return arguments
    return value if isinstance(value, dict) else arguments
