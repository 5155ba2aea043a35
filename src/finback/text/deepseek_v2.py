"""DeepSeek V2 and its kin (V2-Lite, Coder V2, DeepSeek LLM): roles in words, no tools, no reasoning."""

from __future__ import annotations

from collections.abc import Sequence

from finback.errors import InvalidRequest
from finback.text.messages import Message, Tool
from finback.text.prompt import Prompt


def encode_v2(
    messages: Sequence[Message], tools: Sequence[Tool], *, bos: str, eos: str, thinking: bool, answer: bool
) -> Prompt:
    """The conversation; with ``answer``, up to where the model's answer begins."""
    if tools:
        raise InvalidRequest("this model knows no tools", parameter="tools")
    prompt = Prompt()
    prompt.markup(bos)
    for index, message in enumerate(messages):
        if message.role == "tool" or message.tool_calls:
            raise InvalidRequest("this model knows no tools", parameter=f"messages[{index}]")
        prompt.markup({"user": "User: ", "assistant": "Assistant: "}.get(message.role, ""))
        prompt.text(message.text)
        prompt.markup(eos if message.role == "assistant" else "\n\n")
    if answer:
        prompt.markup("Assistant:")
    return prompt
