"""Vocabularies with their published cases, made small.

    python -m tests.vectors.tokenizer.make FOLDER

FOLDER holds ggml-vocab-{deepseek-llm,deepseek-coder,gpt-2}.gguf with .inp and .out beside each, as in the folder
``models`` of ggml's repository llama.cpp (MIT licence: see LICENSE here). The cases are theirs: texts, and the ids that
the original tokenizers gave for them. Needs the package ``gguf``.

A vocabulary is written as its merges and the tokens that no merge makes; :mod:`tests.text.vocabularies` puts it
together again.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = ("deepseek-llm", "deepseek-coder", "gpt-2")
KEPT = ("model", "pre", "bos_token_id", "eos_token_id", "add_bos_token")
SEPARATOR = "\n__ggml_vocab_test__\n"


def main(folder: Path) -> None:
    """Write one compressed vocabulary for each name, and all cases."""
    cases: dict[str, Any] = {}
    for name in NAMES:
        path = folder / f"ggml-vocab-{name}.gguf"
        data = json.dumps(_vocabulary(path), ensure_ascii=False, separators=(",", ":")).encode()
        (HERE / f"{name}.json.xz").write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
        cases[name] = _cases(path)
    (HERE / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=0), encoding="utf-8")


def _vocabulary(path: Path) -> dict[str, Any]:
    import gguf

    fields = gguf.GGUFReader(path).fields
    content = {key.removeprefix("tokenizer.ggml."): field.contents() for key, field in fields.items()}
    tokens, merges = content["tokens"], content["merges"]
    made = [merge.replace(" ", "") for merge in merges]
    first = tokens.index(made[0])
    assert tokens[first : first + len(made)] == made, "tokens do not follow the order of merges"
    return {
        "metadata": {f"tokenizer.ggml.{key}": content[key] for key in KEPT if key in content},
        "before": tokens[:first],
        "merges": merges,
        "after": tokens[first + len(made) :],
        "types": [[id, kind] for id, kind in enumerate(content["token_type"]) if kind != 1],
    }


def _cases(path: Path) -> list[dict[str, Any]]:
    texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)[:-1]
    ids = [[int(id) for id in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
    return [{"text": text, "ids": row} for text, row in zip(texts, ids, strict=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
