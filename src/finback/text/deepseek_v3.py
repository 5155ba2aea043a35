"""DeepSeek V3, V3-0324, R1, R1-0528 and R1's distillations.

They differ in where the assistant's tag stands, which shows only when two users' messages follow each other, and in
reasoning: V3 does none, R1's prompt opens it, R1-0528 opens it itself. What a model thought before an earlier answer is
not shown to it again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from finback.text.markup import (
    ASSISTANT,
    CALL,
    CALLS,
    END_CALL,
    END_CALLS,
    END_OUTPUT,
    END_OUTPUTS,
    END_THINK,
    OUTPUT,
    OUTPUTS,
    SEPARATOR,
    THINK,
    USER,
)
from finback.text.messages import Message, Tool, ToolCall
from finback.text.prompt import Prompt


@dataclass(frozen=True, slots=True)
class V3Style:
    """One of the family. It is the encoder itself: call it with a checked conversation."""

    tag_follows_user: bool  # the assistant's tag ends every user's message; else it begins every answer
    drops_reasoning: bool  # of earlier answers
    opens_reasoning: bool  # of the answer to come

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, bos: str, eos: str, thinking: bool, answer: bool
    ) -> Prompt:
        """The conversation; with ``answer``, up to where the model's answer begins."""
        prompt = Prompt()
        prompt.markup(bos)
        prompt.text(_system(messages, tools))
        before = ""  # the role of the message before
        for message in messages:
            if message.role == "system":
                continue
            if before == "tool" and message.role != "tool":
                prompt.markup(END_OUTPUTS)
            self._encode(prompt, message, before, eos)
            before = message.role
        if before == "tool":
            prompt.markup(END_OUTPUTS)
        elif answer:
            prompt.markup("" if before == "user" and self.tag_follows_user else ASSISTANT)
            prompt.markup(THINK + "\n" if self.opens_reasoning else "")
        return prompt

    def _encode(self, prompt: Prompt, message: Message, before: str, eos: str) -> None:
        if message.role == "user":
            prompt.markup(USER)
            prompt.text(message.text)
            prompt.markup(ASSISTANT if self.tag_follows_user else "")
        elif message.role == "assistant":
            prompt.markup("" if self.tag_follows_user or before == "tool" else ASSISTANT)
            prompt.text(message.text.rpartition(END_THINK)[2] if self.drops_reasoning else message.text)
            _encode_calls(prompt, message.tool_calls)
            prompt.markup(eos)
        else:
            prompt.markup("\n" if before == "tool" else OUTPUTS, OUTPUT)
            prompt.text(message.text)
            prompt.markup(END_OUTPUT)


def _system(messages: Sequence[Message], tools: Sequence[Tool]) -> str:
    parts = [message.text for message in messages if message.role == "system"]
    return "\n\n".join([*parts, *([_describe(tools)] if tools else [])])


def _describe(tools: Sequence[Tool]) -> str:
    """The tools as DeepSeek-V2.5's documentation lists them, which V3 follows."""
    functions = [json.dumps(tool.source["function"], ensure_ascii=False, indent=4) for tool in tools]
    listed = [f"- `{tool.name}`:\n```json\n{text}\n```" for tool, text in zip(tools, functions, strict=True)]
    return "\n\n".join(["## Tools", "### Function", "You have the following functions available:", *listed])


def _encode_calls(prompt: Prompt, calls: Sequence[ToolCall]) -> None:
    for index, call in enumerate(calls):
        prompt.markup("\n" if index else CALLS, CALL, "function", SEPARATOR)
        prompt.text(call.name)
        prompt.markup("\n```json\n")
        prompt.text(call.arguments)
        prompt.markup("\n```", END_CALL)
    if calls:
        prompt.markup(END_CALLS)
