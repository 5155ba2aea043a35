"""Which chat format a model has: one of DeepSeek's, known by heart, or the template that its files carry.

The format follows from the template, because files keep one vocabulary through several formats. Where DeepSeek's own
template is recognised, its encoding is written natively: what users write can then never become markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from finback.errors import InvalidRequest, TokenizerError
from finback.text.added import Piece
from finback.text.chat_template import TemplateChat
from finback.text.deepseek_v2 import encode_v2
from finback.text.deepseek_v3 import V3Style
from finback.text.deepseek_v31 import encode_v31
from finback.text.ids_only import IdsOnly
from finback.text.markup import ASSISTANT, END_THINK, EOS, THINK, USER
from finback.text.messages import Message, Tool, read_messages, read_tools
from finback.text.prompt import PROBE, Prompt, opens_reasoning
from finback.text.reasoning import ReasoningSplitter
from finback.text.stream import StreamParser
from finback.text.tokenizer import Tokenizer
from finback.text.tool_calls import DeepSeekCalls
from finback.weights.checkpoint import Checkpoint

__all__ = ["ChatFormat", "DeepSeekChat", "Piece", "TemplateChat", "chat_format"]


class ChatFormat(Protocol):
    """Turns conversations into prompts, and answers into events."""

    @property
    def name(self) -> str:
        """What the format is called."""

    @property
    def supports_thinking(self) -> bool:
        """Whether the model can reason before it answers."""

    @property
    def default_thinking(self) -> bool:
        """Whether it does unless told otherwise."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        generation_prompt: bool = True,
    ) -> list[Piece]:
        """The prompt for a conversation in OpenAI's shape; InvalidRequest names what is wrong with it."""

    def parser(
        self, thinking: bool | None = None, *, prompt: Sequence[Piece] | None = None, tools: bool = True
    ) -> StreamParser:
        """Reads the answer to ``prompt``; without one, to any that ends with a user's message.

        ``tools``: whether any were offered; if not, what looks like a call is content.
        """


class Encoder(Protocol):
    """Writes a checked conversation; with ``answer``, up to where the model's answer begins."""

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, bos: str, eos: str, thinking: bool, answer: bool
    ) -> Prompt: ...


@dataclass(frozen=True, slots=True)
class Encoding:
    """One of DeepSeek's formats. ``thinking``: the states it can be in, the usual one first."""

    name: str
    encode: Encoder
    thinking: tuple[bool, ...]
    calls_fenced: bool | None  # None: no tools


V2 = Encoding("deepseek-v2", encode_v2, (False,), calls_fenced=None)
V3 = Encoding(
    "deepseek-v3",
    V3Style(tag_follows_user=False, drops_reasoning=False, opens_reasoning=False),
    (False,),
    calls_fenced=True,
)
V3_0324 = replace(
    V3, name="deepseek-v3-0324", encode=V3Style(tag_follows_user=True, drops_reasoning=False, opens_reasoning=False)
)
R1 = Encoding(
    "deepseek-r1",
    V3Style(tag_follows_user=False, drops_reasoning=True, opens_reasoning=True),
    (True,),
    calls_fenced=True,
)
# R1 before its template opened the reasoning, as in the first files of its distillations.
R1_UNOPENED = replace(
    R1,
    name="deepseek-r1-unopened",
    encode=V3Style(tag_follows_user=False, drops_reasoning=True, opens_reasoning=False),
)
R1_0528 = replace(
    R1_UNOPENED,
    name="deepseek-r1-0528",
    encode=V3Style(tag_follows_user=True, drops_reasoning=True, opens_reasoning=False),
)
V31 = Encoding("deepseek-v3.1", encode_v31, (False, True), calls_fenced=False)


class DeepSeekChat:
    """A native encoding with the tokens of one vocabulary."""

    def __init__(self, encoding: Encoding, tokenizer: Tokenizer) -> None:
        self._encoding = encoding
        self._bos = tokenizer.text_of(tokenizer.bos_id)
        self._eos = EOS if tokenizer.token_id(EOS) is not None else tokenizer.text_of(tokenizer.eos_id)
        self.name = encoding.name
        self.supports_thinking = True in encoding.thinking
        self.default_thinking = encoding.thinking[0]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        generation_prompt: bool = True,
    ) -> list[Piece]:
        """See ChatFormat."""
        prompt = self._encoding.encode(
            read_messages(messages),
            read_tools(tools),
            bos=self._bos,
            eos=self._eos,
            thinking=self._thinking(thinking),
            answer=generation_prompt,
        )
        return prompt.pieces

    def parser(
        self, thinking: bool | None = None, *, prompt: Sequence[Piece] | None = None, tools: bool = True
    ) -> StreamParser:
        """See ChatFormat."""
        if prompt is None:
            prompt = self.render(PROBE, thinking=thinking)
        opened = opens_reasoning(prompt)
        fenced = self._encoding.calls_fenced
        return StreamParser(
            ReasoningSplitter(opened=opened) if self.supports_thinking else None,
            DeepSeekCalls(fenced=fenced) if tools and fenced is not None else None,
        )

    def _thinking(self, thinking: bool | None) -> bool:
        if thinking is None:
            return self.default_thinking
        if thinking not in self._encoding.thinking:
            state = "always reasons" if self.default_thinking else "does not reason"
            raise InvalidRequest(f"this model {state}", parameter="thinking")
        return thinking


def chat_format(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatFormat | None:
    """The chat format of a model; None if it only continues text."""
    if isinstance(tokenizer, IdsOnly):
        return None
    templates = _templates(checkpoint)
    template = templates.get("default")
    if template is None:
        encoding = _by_vocabulary(checkpoint, tokenizer)
        return None if encoding is None else DeepSeekChat(encoding, tokenizer)
    encoding = _by_template(template, tokenizer)
    if encoding is not None:
        return DeepSeekChat(encoding, tokenizer)
    return TemplateChat(template, tokenizer, with_tools=templates.get("tool_use"))


def _by_template(template: str, tokenizer: Tokenizer) -> Encoding | None:
    """The encoding whose marks a template carries; None for a template of another family."""
    if all(part in template for part in ("'User: '", "'Assistant: '", "'Assistant:'")):
        return V2
    if USER not in template or ASSISTANT not in template or "DSML" in template:
        return None
    if tokenizer.token_id(USER) is None or tokenizer.token_id(ASSISTANT) is None:
        return None
    if "thinking" in template and ASSISTANT + END_THINK in template:
        return V31
    if ASSISTANT + THINK in template:
        return R1
    later = "is_last_user" in template
    if END_THINK in template:
        return R1_0528 if later else R1_UNOPENED
    return V3_0324 if later else V3


def _by_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Encoding | None:
    """For files without a template: DeepSeek's tags in the vocabulary say that the model chats, its name says how."""
    if tokenizer.token_id(USER) is None or tokenizer.token_id(ASSISTANT) is None:
        return None
    names = (checkpoint.name, checkpoint.metadata.get("general.name"), checkpoint.hf_config.get("_name_or_path"))
    name = " ".join(str(name).lower() for name in names)
    if "v3.1" in name or "v3_1" in name or "terminus" in name:
        return V31
    if "r1" in name:
        return R1_0528
    return V3_0324


def _templates(checkpoint: Checkpoint) -> dict[str, str]:
    """Templates by name: "default", and "tool_use" where there is one."""
    if checkpoint.kind == "gguf":
        prefix = "tokenizer.chat_template"
        found = {"default": checkpoint.metadata.get(prefix), "tool_use": checkpoint.metadata.get(f"{prefix}.tool_use")}
    else:
        found = _templates_of_folder(checkpoint)
    for name, template in found.items():
        if template is not None and not isinstance(template, str):
            raise TokenizerError(f"the chat template {name!r} of {checkpoint.path} must be text")
    return {name: template for name, template in found.items() if template}


def _templates_of_folder(checkpoint: Checkpoint) -> dict[str, Any]:
    if "chat_template.jinja" in checkpoint.files:
        return {"default": checkpoint.side_text("chat_template.jinja")}
    stated = checkpoint.side_json("tokenizer_config.json").get("chat_template")
    if not isinstance(stated, list):
        return {"default": stated}
    return {str(entry.get("name")): entry.get("template") for entry in stated if isinstance(entry, dict)}
