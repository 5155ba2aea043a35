"""How each family cuts text into words before byte pairs are merged.

A file only ever chooses among the patterns below: a regular expression out of a file could take exponential time, so an
unknown one is refused. Every pattern here takes time linear in the text; the one published pattern that does not
(``\\s+$``, quadratic in a run of spaces) is replaced by one that means the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from finback.errors import TokenizerError, UnsupportedModel

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

# Letters that have case, as DeepSeek's first tokenizers list them. Escaped, because some have canonical equivalents
# that editors and clipboards put in their place unseen.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CONTRACTION = "'s|'t|'re|'ve|'m|'ll|'d"
_GPT2_TAIL = r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LINE_BREAK = "[\r\n]"
_EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_SPACES_AT_END = r"(?<!\s)\s+$"

_GPT2 = _CONTRACTION + _GPT2_TAIL + r"|\s+"
_LLAMA = rf"(?i:{_CONTRACTION})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}" + _LLAMA_TAIL
_QWEN = rf"(?i:{_CONTRACTION})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}" + _LLAMA_TAIL
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)


@dataclass(frozen=True, slots=True)
class Words:
    """Patterns that are applied one after the other, each to what the ones before left; then bytes.

    ``leading_space``: put a space before a text that begins with none. ``nfc``: the family composes characters first.
    ``whole_words``: a word that is a token as it stands is not put together from pairs. ``adds_bos``: unless the file
    says otherwise.
    """

    patterns: tuple[str, ...]
    leading_space: bool = False
    nfc: bool = False
    whole_words: bool = False
    adds_bos: bool = False

    def build(self) -> PreTokenizer:
        """As an object of the ``tokenizers`` library."""
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

        steps: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return Sequence([*steps, ByteLevel(add_prefix_space=self.leading_space, use_regex=False)])


_LLAMA_WORDS = Words((_LLAMA,), whole_words=True, adds_bos=True)

# By tokenizer.ggml.pre.
FAMILIES: Mapping[str, Words] = MappingProxyType(
    {
        "default": Words((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        "gpt-2": Words((_GPT2,)),
        "smollm": Words((r"\p{N}", _GPT2)),
        "llama-bpe": _LLAMA_WORDS,
        "llama-v3": _LLAMA_WORDS,
        "llama3": _LLAMA_WORDS,
        "qwen2": Words((_QWEN,), nfc=True),
        "deepseek-r1-qwen": Words((_QWEN,), nfc=True),
        "deepseek-llm": Words(
            (
                _LINE_BREAK,
                rf"\s?[{_CASED}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                _SPACES_AT_END,
                _EAST_ASIAN,
                r"\p{N}+",
            )
        ),
        "deepseek-coder": Words((_LINE_BREAK, r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")),
        "deepseek-v3": Words((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK_V3)),
    }
)


def words_of_gguf(pre: str) -> Words:
    """How the family that a GGUF file names cuts text."""
    if pre not in FAMILIES:
        raise UnsupportedModel(
            f"the tokenizer cuts text as {pre[:80]!r} does, which Finback does not know",
            hint=f"known: {', '.join(FAMILIES)}",
        )
    return FAMILIES[pre]


def words_of_json(spec: object) -> Words:
    """How the ``pre_tokenizer`` of a tokenizer.json cuts text."""
    steps = _flat(spec)
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or any(step.get("type") == "ByteLevel" for step in steps[:-1]):
        raise UnsupportedModel("the tokenizer does not work on bytes (its pre_tokenizer does not end in ByteLevel)")
    patterns = [_pattern_of(step) for step in steps[:-1]]
    if last.get("use_regex", True):
        patterns.append(_GPT2)
    return Words(tuple(patterns), leading_space=bool(last.get("add_prefix_space", True)))


def _flat(spec: object) -> list[dict[str, Any]]:
    if not isinstance(spec, dict):
        raise UnsupportedModel("tokenizer.json has no pre_tokenizer")
    if spec.get("type") != "Sequence":
        return [spec]
    steps = spec.get("pretokenizers")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise TokenizerError("tokenizer.json: pretokenizers must be a list of objects")
    return steps


def _pattern_of(step: dict[str, Any]) -> str:
    kind = step.get("type")
    if kind == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    if kind != "Split":
        raise UnsupportedModel(f"tokenizer.json: the pre_tokenizer {str(kind)[:80]!r} is not supported")
    if step.get("behavior") != "Isolated" or step.get("invert"):
        raise UnsupportedModel("tokenizer.json: a Split pre_tokenizer must isolate what it matches")
    pattern = step.get("pattern")
    published = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(published, str):
        raise UnsupportedModel("tokenizer.json: a Split pre_tokenizer must have a regular expression")
    return _known(published)


def _known(published: str) -> str:
    """Our spelling of a published pattern. Copies of files may have been composed on their way, so that is undone."""
    patterns: Sequence[str] = [pattern for words in FAMILIES.values() for pattern in words.patterns]
    spellings = {unicodedata.normalize("NFC", pattern): pattern for pattern in patterns}
    spellings[r"\s+$"] = _SPACES_AT_END
    spellings[_CONTRACTION + _GPT2_TAIL] = _GPT2
    found = spellings.get(unicodedata.normalize("NFC", published))
    if found is None:
        raise UnsupportedModel(
            f"tokenizer.json cuts text by a regular expression that Finback does not know: {published[:120]!r}",
            hint="a GGUF edition of the model may name a family that is known",
        )
    return found
