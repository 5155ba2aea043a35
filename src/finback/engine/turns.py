"""One engine for several threads: whoever waits for an output takes a step for all.

No thread of its own, no queue between threads: the lock is held for one step at a time, and an output that belongs to
another request waits in that request's box. So a reader that pauses in the middle of an answer stops nobody.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from finback.engine.engine import Engine
from finback.engine.request import SamplingParams, StepOutput


class Turns:
    """Lets threads take turns at an engine. Invariant: a request in the engine has a box, or is in ``_left``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._boxes: dict[str, deque[StepOutput]] = {}
        self._left: deque[str] = deque()  # requests whose readers have gone
        self._ids = itertools.count()

    def start(self, tokens: Sequence[int], params: SamplingParams) -> Generator[StepOutput]:
        """A request's outputs. It is checked now, and runs from the first ``next`` until the generator is closed."""
        with self._lock:
            return self._outputs(self._engine.validate(tokens, params), params)

    def logits(self, tokens: Sequence[int], *, chunk: int | None, prompt: int | None) -> NDArray[np.float32]:
        """See Engine.logits."""
        with self._lock:
            self._sweep()
            return self._engine.logits(tokens, chunk=chunk, prompt=prompt)

    def close(self) -> None:
        """Close the engine."""
        with self._lock:
            self._engine.close()

    def _outputs(self, tokens: Sequence[int], params: SamplingParams) -> Generator[StepOutput]:
        request_id = f"turn-{next(self._ids)}"
        with self._lock:
            self._engine.add(request_id, tokens, params)
            self._boxes[request_id] = deque()
        try:
            finished = False
            while not finished:
                output = self._next(request_id)
                finished = output.finish_reason is not None
                yield output
        finally:
            self._leave(request_id)

    def _next(self, request_id: str) -> StepOutput:
        """The request's next output; steps the engine until there is one. Raises the error that ended the request."""
        with self._lock:
            self._sweep()
            box = self._boxes[request_id]
            while not box:
                for output in self._engine.step():
                    if output.request_id in self._boxes:
                        self._boxes[output.request_id].append(output)
            output = box.popleft()
        if output.error is not None:
            raise output.error
        return output

    def _leave(self, request_id: str) -> None:
        # The garbage collector may close a generator anywhere, even while this very thread holds the lock: do not
        # wait for it.
        self._left.append(request_id)
        if self._lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._lock.release()

    def _sweep(self) -> None:
        while self._left:
            request_id = self._left.popleft()
            self._boxes.pop(request_id, None)
            self._engine.abort(request_id)
