"""Golden prompts: conversations of ours as transformers renders them with DeepSeek's published templates.

    python -m tests.vectors.chat.make FOLDER

FOLDER holds the templates as ``NAME.jinja`` for the names below: the ``chat_template`` of each model's
tokenizer_config.json. Needs the package ``transformers``. Conversations stay clear of where a published template fails
or contradicts itself: calls without content, and tools in the template of the distillations.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
TEMPLATES: dict[str, tuple[str, list[dict[str, bool]]]] = {
    "deepseek-v3-0324": ("deepseek-v3-0324", [{}]),
    "deepseek-r1-0528": ("deepseek-r1-0528", [{}]),
    "deepseek-v3.1": ("deepseek-v3.1", [{"thinking": False}, {"thinking": True}]),
    "deepseek-v3.1-terminus": ("deepseek-v3.1", [{"thinking": False}, {"thinking": True}]),
    "deepseek-r1-distill-qwen": ("deepseek-r1-unopened", [{}]),
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": "call_0"}


def calls(text: str, *functions: tuple[str, str]) -> dict[str, Any]:
    entries = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, (name, arguments) in enumerate(functions)
    ]
    return {"role": "assistant", "content": text, "tool_calls": entries}


WITHOUT_TOOLS = [
    [user("Hi")],
    [system("Be kind."), user("Hi")],
    [system("Be kind."), user("Hi"), answer("Hello!"), user("  How are you?\t\n")],
    [user("a"), answer("<think>\nhm\n</think>\n\nyes"), user("more")],
    [user("a"), answer("b </think> c </think> d"), user("e")],
    [user("a"), user("b")],
    [user("Grüße, 世界 😀"), answer("naïve\n\n"), user("```json\n{}\n```")],
]
WITH_TOOLS = [
    [system("a"), user("b"), system("c"), answer("d"), user("e")],
    [user("w"), calls("", ("look", '{"city": "Zürich"}')), result("sunny")],
    [user("w"), calls("", ("look", '{"city": "Zürich"}')), result("sunny"), answer("It is."), user("thanks")],
    [user("w"), calls("Let me see.", ("look", '{"a":1}'), ("find", '{"b": [1, 2]}')), result("1"), result("2")],
    [
        *(
            user("w"),
            calls("", ("look", "{}")),
            result("1"),
            calls("", ("look", '{"n": 2}')),
            result("2"),
            answer("end"),
        ),
        *(user("again"), calls("hm", ("look", "{}")), result("3"), answer("fin"), user("x")),
    ],
]


def main(folder: Path) -> None:
    """Render every conversation with every template."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    goldens: list[dict[str, Any]] = []
    for name, (encoding, options) in TEMPLATES.items():
        template = _compile_jinja_template((folder / f"{name}.jinja").read_text(encoding="utf-8"))
        conversations = WITHOUT_TOOLS if name == "deepseek-r1-distill-qwen" else WITHOUT_TOOLS + WITH_TOOLS
        for messages in conversations:
            for option in options:
                for generate in (True, False):
                    values = {"add_generation_prompt": generate, "bos_token": BOS, "eos_token": EOS, **option}
                    prompt = template.render(messages=copy.deepcopy(messages), **values)
                    golden = {"template": name, "encoding": encoding, "messages": messages, **option}
                    goldens.append({**golden, "generation_prompt": generate, "prompt": prompt})
    text = json.dumps(goldens, ensure_ascii=False, indent=0)
    (HERE / "goldens.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
