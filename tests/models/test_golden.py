"""Every family against logits and tokens that transformers computed from the same weights (tests/vectors/models)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.models.files import load, write_folder
from tests.models.steps import PLANS, greedy, run
from tests.vectors.models import tiny
from tests.vectors.models.tiny import TINY

VECTORS = Path(tiny.__file__).parent
TOLERANCE = 2e-4  # of logits whose standard deviation is about 1


@pytest.mark.parametrize("name", TINY)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    golden = np.load(VECTORS / f"{name}.npz")
    model = load(write_folder(tmp_path / "model", TINY[name]), tmp_path / "cache")
    prompt = golden["prompt"].tolist()
    assert len(golden["logits"]) == len(golden["positions"]) >= 4
    for plan, steps in PLANS.items():
        logits = run(model, steps(prompt))[golden["positions"]]
        np.testing.assert_allclose(logits, golden["logits"], atol=TOLERANCE, rtol=0, err_msg=f"{name}, {plan}")
    assert golden["margin"] > 4 * TOLERANCE
    assert greedy(model, prompt, len(golden["greedy"])) == golden["greedy"].tolist()


def test_golden_logits_have_the_spread_that_the_tolerance_is_stated_for() -> None:
    spreads = [np.load(VECTORS / f"{name}.npz")["logits"].std() for name in TINY]
    assert all(0.8 < spread < 1.3 for spread in spreads)
