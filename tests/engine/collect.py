"""Steps an engine to the end and puts each request's outputs together."""

from __future__ import annotations

from dataclasses import dataclass, field

from finback.engine.engine import Engine
from finback.engine.request import StepOutput, TokenLogprob, Usage
from finback.errors import EngineError


@dataclass
class Finished:
    """Everything that was told about one request."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None
    error: EngineError | None = None

    def take(self, output: StepOutput) -> None:
        assert self.finish_reason is None, "an output after the last one"
        self.tokens += output.tokens
        self.text += output.text
        self.logprobs += output.logprobs or ()
        self.finish_reason, self.usage, self.error = output.finish_reason, output.usage, output.error


def finish(engine: Engine, *, most_steps: int = 5000) -> dict[str, Finished]:
    """Step until there is no work; check the books after every step."""
    results: dict[str, Finished] = {}
    for _ in range(most_steps):
        if not engine.has_work:
            break
        for output in engine.step():
            results.setdefault(output.request_id, Finished()).take(output)
        engine.check_integrity()
    assert not engine.has_work, "requests do not end"
    assert all(result.finish_reason for result in results.values())
    return results
