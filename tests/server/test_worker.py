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
