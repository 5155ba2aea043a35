"""What a model's answer says, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of the model to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A function is to be called; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the arguments of call ``index``: JSON as the model writes it."""

    index: int
    text: str


Event = Reasoning | Content | ToolCallStart | ToolCallArguments
