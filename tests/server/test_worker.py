"""The hop between the event loop and the engine's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.conftest import TinyModel

from finback.engine.request import SamplingParams
from finback.errors import QueueFull
from finback.server.worker import EngineWorker, Job

JOB = Job([1, 2, 3], SamplingParams(max_tokens=2))


class HeldModel(TinyModel):
    """Takes a step as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def forward(self, batch: Any, cache: list[dict[str, np.ndarray]]) -> np.ndarray:
        self.begun.set()
        assert self.go_on.wait(30)
        return super().forward(batch, cache)


def test_a_full_queue_refuses_during_a_step(make_engine: Callable[..., Any]) -> None:
    model = HeldModel()
    worker = EngineWorker(make_engine(model, max_requests=1, max_queue=2))

    async def ask() -> None:
        first = await worker.submit([JOB], lambda count: None)
        await asyncio.to_thread(model.begun.wait)
        more = [asyncio.create_task(worker.submit([JOB], lambda count: None)) for _ in range(2)]
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(QueueFull):
                await asyncio.wait_for(worker.submit([JOB], lambda count: None), 10)
        assert not model.go_on.is_set()
        model.go_on.set()
        for work in (first, *await asyncio.gather(*more)):
            assert [told[1].finish_reason async for told in work if told][-1] == "length"
        assert not worker._arriving
        await asyncio.wait_for(worker.submit([JOB], lambda count: None), 10)

    worker.start()
    try:
        asyncio.run(ask())
    finally:
        model.go_on.set()
        worker.stop()


def test_a_closed_job_is_computed_no_further(make_engine: Callable[..., Any]) -> None:
    """The step that runs while a client hangs up is the last one with its rows."""
    model = HeldModel()
    worker = EngineWorker(make_engine(model))
    endless = Job([1, 2, 3], SamplingParams(max_tokens=300, ignore_eos=True))

    async def ask() -> None:
        model.go_on.set()
        stays = await worker.submit([endless], lambda count: None)
        leaves = await worker.submit([endless], lambda count: None)
        while sum(len(batch.segments) == 2 for batch in model.batches) < 3:
            await asyncio.sleep(0.001)
        model.go_on.clear()
        model.begun.clear()
        await asyncio.to_thread(model.begun.wait)
        leaves.close()
        computed = len(model.batches) + 1  # with the one that is held
        model.go_on.set()
        await asyncio.wait_for(leaves.streams[0].ended, 10)
        while len(model.batches) < computed + 5:
            await asyncio.sleep(0.001)
        assert all(len(batch.segments) == 1 for batch in model.batches[computed:])
        stays.close()
        await asyncio.wait_for(stays.streams[0].ended, 10)

    worker.start()
    try:
        asyncio.run(ask())
    finally:
        model.go_on.set()
        worker.stop()
