"""A conversation and its settings, free of any terminal: what ``/commands`` change and what ``/save`` keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finback.errors import InvalidRequest

_WHOLE = ("max_tokens", "top_k", "seed")
_REAL = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_FORMAT = "finback-conversation-1"


@dataclass(slots=True)
class Conversation:
    """Messages in OpenAI's shape, without the system prompt, which stands beside them and survives ``clear``."""

    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    sampling: dict[str, Any] = field(default_factory=dict)
    thinking: bool | None = None

    def prompt(self) -> list[dict[str, Any]]:
        """All messages as a model is asked."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.messages

    def ask(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def hear(self, text: str, reasoning: str) -> None:
        """The model's turn is over. An empty turn is forgotten, and the question with it."""
        if not text and not reasoning:
            self.take_back()
            return
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if reasoning:
            message["reasoning_content"] = reasoning
        self.messages.append(message)

    def take_back(self) -> str | None:
        """Remove the last question and what followed; the question, or None if there is none."""
        for at in range(len(self.messages) - 1, -1, -1):
            if self.messages[at]["role"] == "user":
                question = str(self.messages[at]["content"])
                del self.messages[at:]
                return question
        return None

    def set(self, name: str, text: str) -> None:
        """Change one setting; InvalidRequest if there is none of that name or the value cannot be used."""
        if name == "thinking":
            self.thinking = _parse_switch(text)
            return
        parse = _parser(name)
        if text in ("default", "none"):
            self.sampling.pop(name, None)
            return
        value = parse(name, text)
        _validate({name: value})
        self.sampling[name] = value

    def settings(self) -> dict[str, Any]:
        """The settings that differ from the model's own."""
        thinking = {} if self.thinking is None else {"thinking": self.thinking}
        return self.sampling | thinking

    def save(self, path: Path) -> None:
        """Write a new file; one that exists is never overwritten."""
        record = {
            "format": _FORMAT,
            "system": self.system,
            "messages": self.messages,
            "sampling": self.sampling,
            "thinking": self.thinking,
        }
        with open(path, "x", encoding="utf-8") as file:
            json.dump(record, file, ensure_ascii=False, indent=2)

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read what :meth:`save` wrote; InvalidRequest if it is anything else."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != _FORMAT:
                raise ValueError("another format")
            return _checked(record)
        except (ValueError, KeyError, TypeError, RecursionError) as fault:
            raise InvalidRequest(f"{path} is not a saved conversation", hint="save one with /save FILE") from fault


def _checked(record: Mapping[str, Any]) -> Conversation:
    system, thinking, sampling = record["system"], record["thinking"], record["sampling"]
    if not isinstance(system, str | None) or not isinstance(thinking, bool | None):
        raise ValueError("wrong types")
    messages = [_checked_message(message) for message in record["messages"]]
    for name in sampling:
        _parser(name)
    _validate(sampling)
    return Conversation(system, messages, dict(sampling), thinking)


def _checked_message(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] not in ("user", "assistant") or not all(isinstance(value, str) for value in message.values()):
        raise ValueError("not a message of a conversation")
    if not set(message) <= {"role", "content", "reasoning_content"} or "content" not in message:
        raise ValueError("unknown fields")
    return dict(message)


def _parser(name: str) -> Callable[[str, str], int | float]:
    if name in _WHOLE:
        return _parse_whole
    if name in _REAL:
        return _parse_real
    known = ", ".join(sorted([*_WHOLE, *_REAL, "thinking"]))
    raise InvalidRequest(f"{name!r} is not a setting", hint=f"settings: {known}")


def _parse_whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidRequest(f"{name} must be a whole number, not {text!r}") from None


def _parse_real(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest(f"{name} must be a number, not {text!r}") from None


def _parse_switch(text: str) -> bool | None:
    choices = {"on": True, "off": False, "default": None}
    if text not in choices:
        raise InvalidRequest(f"thinking must be on, off or default, not {text!r}")
    return choices[text]


def _validate(sampling: Mapping[str, Any]) -> None:
    from finback.engine.request import SamplingParams

    SamplingParams(**sampling)
