"""Regenerate the golden vectors from their oracles: ``python -m tests.vectors.make`` (needs the extra ``parity``)."""

from __future__ import annotations

from pathlib import Path

from tests.vectors.blocks import make as blocks
from tests.vectors.models import make as models

HERE = Path(__file__).parent


def main() -> None:
    blocks.write_all(HERE / "blocks")
    models.write_all(HERE / "models")


if __name__ == "__main__":
    main()
