"""Mutated model files, the short version; ``make fuzz`` runs thousands of each kind under the sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.weights import fuzz

STAGE = "model"
MUTATIONS = 250  # of each kind


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_every_mutation_ends_in_a_typed_error_or_a_sound_load(kind: str, tmp_path: Path) -> None:
    tally = fuzz.run(kind, range(MUTATIONS), seed=7, stage=STAGE, folder=tmp_path, limit_s=5 * fuzz.LIMIT_S)
    assert not tally.failures
    assert sum(tally.outcomes.values()) == MUTATIONS
    # Neither may be rare, or nothing was tested.
    assert tally.outcomes["loaded"] > MUTATIONS / 20
    assert tally.outcomes["MalformedFile"] > MUTATIONS / 5


def test_mutations_are_reproducible(tmp_path: Path) -> None:
    tallies = [
        fuzz.run("gguf", range(40), seed=3, stage="headers", folder=tmp_path / name, limit_s=60) for name in ("a", "b")
    ]
    assert tallies[0].outcomes == tallies[1].outcomes
