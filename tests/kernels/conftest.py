"""What kernel tests share: every instruction set of this machine, one thread unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from finback import kernels


@pytest.fixture(params=kernels.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on each instruction set."""
    previous = kernels.select_isa(request.param)
    yield request.param
    kernels.select_isa(previous)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    previous = kernels.threads()
    kernels.set_threads(1)
    yield
    kernels.set_threads(previous)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's name: every case different, every case repeatable."""
    return np.random.default_rng(list(request.node.nodeid.encode()))
