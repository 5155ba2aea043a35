"""How markup tokens are spelled, and which added tokens count as markup."""

from __future__ import annotations

import re

THINK, END_THINK = "<think>", "</think>"

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, END_CALL, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
OUTPUTS, END_OUTPUTS = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT, END_OUTPUT = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
FENCE = "```"

TAG_CALL, END_TAG_CALL = "<tool_call>", "</tool_call>"

# What the stream parsers read in a model's answer: shown even when control tokens are not.
ANSWER_MARKUP = frozenset(
    {THINK, END_THINK, CALLS, END_CALLS, CALL, END_CALL, SEPARATOR, TAG_CALL, END_TAG_CALL, "｜DSML｜"}
)
# Tokens that end a turn in families whose files name only one of several.
END_OF_TURN = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>"})

_MARKUP = re.compile(r"<[^<>\s][^<>]*>|.*｜.*", re.DOTALL)
_PADDING = re.compile(r"\[PAD-?\d*\]")


def looks_like_markup(text: str) -> bool:
    """Whether an added token is markup by its spelling. Files do not always flag it: DeepSeek's do not."""
    return len(text) > 1 and _MARKUP.fullmatch(text) is not None


def is_padding(text: str) -> bool:
    """Whether a token only fills the vocabulary up to the size of the model's head."""
    return _PADDING.fullmatch(text) is not None
