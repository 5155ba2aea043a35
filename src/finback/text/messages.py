"""Conversations and tools in OpenAI's shape, checked and brought into one form before any encoding sees them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

from finback.errors import InvalidRequest

Role = Literal["system", "user", "assistant", "tool"]

MAX_TOOLS = 128
MAX_DEPTH = 32  # of JSON in tools
MAX_NODES = 100_000  # likewise
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_FIELDS = {
    "system": frozenset({"role", "content", "name"}),
    "user": frozenset({"role", "content", "name"}),
    "assistant": frozenset({"role", "content", "name", "tool_calls", "reasoning_content"}),
    "tool": frozenset({"role", "content", "name", "tool_call_id"}),
}
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model has made. ``arguments`` is as the model wrote it: JSON, if all went well."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Invariant: only an assistant's may lack content, and then it calls tools."""

    role: Role
    content: str | None
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content; nothing if there is none."""
        return self.content or ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function on offer. ``source`` is the whole entry as it came: JSON data, checked."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    source: Mapping[str, Any]


def read_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Check a conversation."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        _refuse("must be a list of messages", "messages")
    if not messages:
        _refuse("must not be empty", "messages")
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def read_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Tool]:
    """Check the tools on offer."""
    if tools is None:
        return []
    if isinstance(tools, (str, bytes)) or not isinstance(tools, Sequence):
        _refuse("must be a list of tools", "tools")
    if len(tools) > MAX_TOOLS:
        _refuse(f"{len(tools)} tools are too many: at most {MAX_TOOLS} can be offered", "tools")
    return [_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def _refuse(problem: str, parameter: str, *, hint: str | None = None) -> NoReturn:
    raise InvalidRequest(f"{parameter}: {problem}", parameter=parameter, hint=hint)


def _read_message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        _refuse("a message must be an object", where)
    role = _role(message.get("role"), f"{where}.role")
    for field, value in message.items():
        if field not in _FIELDS[role] and value not in (None, [], {}):  # what clients echo of an answer may be empty
            _refuse(f"a message of role {role!r} has no such field", f"{where}.{str(field)[:80]}")
    calls = _read_calls(message.get("tool_calls") or (), f"{where}.tool_calls")
    content = message.get("content")
    if content is not None:
        content = _read_content(content, f"{where}.content")
    elif role != "assistant" or not calls:
        _refuse("must be given", f"{where}.content")
    return Message(
        role,
        content,
        name=_optional_text(message, "name", where),
        reasoning=_optional_text(message, "reasoning_content", where),
        tool_calls=calls,
        tool_call_id=_optional_text(message, "tool_call_id", where),
    )


def _role(value: object, where: str) -> Role:
    if not isinstance(value, str) or value not in _ROLES:
        _refuse(f"must be one of {', '.join(_ROLES)}, not {str(value)[:80]!r}", where)
    return cast(Role, _ROLES[value])


def _read_content(content: object, where: str) -> str:
    """A string, or text parts, which are joined by line breaks."""
    if isinstance(content, str):
        return _text(content, where)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        _refuse("must be a string or a list of text parts", where)
    return "\n".join(_read_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _read_part(part: object, where: str) -> str:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        _refuse("a part of a message must be an object with a type", where)
    if part["type"] != "text":
        _refuse(f"parts of type {part['type'][:80]!r} are not supported", f"{where}.type", hint="send text")
    return _text(part.get("text"), f"{where}.text")


def _read_calls(calls: object, where: str) -> tuple[ToolCall, ...]:
    if isinstance(calls, (str, bytes)) or not isinstance(calls, Sequence):
        _refuse("must be a list of calls", where)
    return tuple(_read_call(call, f"{where}[{index}]") for index, call in enumerate(calls))


def _read_call(call: object, where: str) -> ToolCall:
    if not isinstance(call, Mapping) or call.get("type", "function") != "function":
        _refuse("must be an object of type 'function'", where)
    function = call.get("function")
    if not isinstance(function, Mapping):
        _refuse("must be an object with name and arguments", f"{where}.function")
    name = _text(function.get("name"), f"{where}.function.name")
    if not name.strip():
        _refuse("must not be empty", f"{where}.function.name")
    arguments = _text(function.get("arguments"), f"{where}.function.arguments")
    return ToolCall(_optional_text(call, "id", where) or "", name, arguments)


def _optional_text(fields: Mapping[str, Any], field: str, where: str) -> str | None:
    value = fields.get(field)
    return None if value is None else _text(value, f"{where}.{field}")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        _refuse(f"must be a string, not {type(value).__name__}", where)
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse("holds half of a surrogate pair, which is no character", where)
    return value


def _read_tool(tool: object, where: str) -> Tool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        _refuse("must be an object of type 'function'", where)
    check_json(tool, where)
    function = tool.get("function")
    if not isinstance(function, dict):
        _refuse("must be an object with a name", f"{where}.function")
    name = function.get("name")
    if not isinstance(name, str) or _TOOL_NAME.fullmatch(name) is None:
        _refuse("must be 1 to 64 letters, digits, underscores and dashes", f"{where}.function.name")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        _refuse("must be an object", f"{where}.function.parameters")
    description = _optional_text(function, "description", f"{where}.function") or ""
    return Tool(name, description, parameters or {}, tool)


def check_json(value: object, where: str) -> None:
    """Refuse what is not JSON data of reasonable size: visited level by level, so that depth costs no stack."""
    level = [value]
    nodes = 0
    for _ in range(MAX_DEPTH):
        nodes += len(level)
        if nodes > MAX_NODES:
            _refuse(f"holds more than {MAX_NODES} values", where)
        level = [child for node in level for child in _children(node, where)]
        if not level:
            return
    _refuse(f"is nested more than {MAX_DEPTH} deep", where)


def _children(node: object, where: str) -> Iterator[object]:
    if isinstance(node, str):
        _text(node, where)
    elif isinstance(node, dict):
        for key in node:
            _text(key, f"{where}: a key")
        yield from node.values()
    elif isinstance(node, list):
        yield from node
    elif isinstance(node, float) and not math.isfinite(node):
        _refuse("holds a number that JSON does not have", where)
    elif isinstance(node, int) and not isinstance(node, bool) and abs(node) >= 2**63:
        _refuse("holds a number of more than 64 bits", where)
    elif node is not None and not isinstance(node, (bool, int, float)):
        _refuse(f"holds {type(node).__name__}, which is not JSON", where)
