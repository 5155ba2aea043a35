"""Load on a server, and what it felt like to its clients: for ``finback bench serve``.

Open loop: requests come when they come, whether or not earlier ones are done, as users do; a server that falls behind
is seen to. With a bound on the streams at once it becomes a closed loop that measures throughput instead. Works with
any server that has OpenAI's completions route and takes prompts of token ids.
"""

from __future__ import annotations

import asyncio
import csv
import itertools
import random
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from finback.errors import ConfigError

# Columns of the traces that clouds publish, and the plain names.
_COLUMNS = {
    "at_s": ("at_s", "TIMESTAMP", "Timestamp"),
    "prompt": ("prompt_tokens", "ContextTokens", "Request tokens"),
    "answer": ("output_tokens", "GeneratedTokens", "Response tokens"),
}
TIMEOUT_S = 600.0
CLIENTS = 32  # a client looks at all of its connections for each request: share hundreds among many
BYTES, MOST_IDS = 250, 20_000  # ids that every vocabulary has; and enough of them for prompts that share nothing


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the load: when it comes, and how many tokens it has and wants."""

    at_s: float
    prompt_tokens: int
    output_tokens: int

    def capped(self, context: int) -> Ask:
        """The same within a context; the answer keeps what it can, since it takes the time."""
        answer = min(self.output_tokens, context // 2)
        return Ask(self.at_s, max(1, min(self.prompt_tokens, context - answer - 1)), max(1, answer))


@dataclass(slots=True)
class Felt:
    """What one client saw. Times are seconds from the start of the load."""

    ask: Ask
    sent_s: float = 0.0
    first_s: float | None = None
    last_s: float = 0.0
    status: int = 0  # 0: no answer at all
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the whole answer came."""
        return self.status == 200 and self.error is None

    @property
    def ttft_s(self) -> float:
        """From its sending to its first token."""
        return (self.first_s or self.last_s) - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """The mean time between tokens after the first; None for answers of one token."""
        if self.first_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Target:
    """The server under load."""

    url: str  # with /v1
    model: str
    key: str | None = field(default=None, repr=False)
    vocabulary: int = BYTES  # prompts are token ids below this

    @property
    def headers(self) -> dict[str, str]:
        """Who asks."""
        return {} if self.key is None else {"authorization": f"Bearer {self.key}"}


def poisson(count: int, rate: float, prompt_tokens: int, output_tokens: int, seed: int) -> list[Ask]:
    """Requests whose distances in time are exponential: users who know nothing of each other."""
    rng = random.Random(seed)
    at, asks = 0.0, []
    for _ in range(count):
        asks.append(Ask(at, prompt_tokens, output_tokens))
        at += rng.expovariate(rate)
    return asks


def read_trace(path: Path, count: int | None = None, seed: int | None = None) -> list[Ask]:
    """Requests of a CSV file; the first ``count``, or with a ``seed`` as many drawn from all, in their order."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            asks = list(_asks(csv.DictReader(file)))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"cannot read the trace {path}: {error}",
            hint="it is a CSV file with the columns at_s, prompt_tokens and output_tokens",
        ) from None
    if count is not None and count < len(asks):
        chosen = range(count) if seed is None else sorted(random.Random(seed).sample(range(len(asks)), count))
        asks = [asks[index] for index in chosen]
    if not asks:
        raise ConfigError(f"the trace {path} has no requests")
    begin = asks[0].at_s
    return [Ask(ask.at_s - begin, ask.prompt_tokens, ask.output_tokens) for ask in asks]


def _asks(lines: csv.DictReader[str]) -> Iterable[Ask]:
    found = lines.fieldnames or []
    names = {}
    for ours, theirs in _COLUMNS.items():
        names[ours] = next((name for name in theirs if name in found), None)
        if names[ours] is None:
            raise KeyError(f"no column {theirs[0]}")
    for line in lines:
        at, prompt, answer = (line[str(names[column])] for column in ("at_s", "prompt", "answer"))
        yield Ask(_seconds(at), max(1, int(prompt)), max(1, int(answer)))


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        whole, _, fraction = text.partition(".")  # published traces have seven digits, which datetime does not read
        return datetime.fromisoformat(whole).timestamp() + float(f"0.{fraction or 0}")


async def find(url: str, key: str | None, model: str | None) -> tuple[Target, int | None]:
    """The server at ``url`` and the context of its model, where it tells; ConfigError when there is none."""
    target = Target(url.rstrip("/"), model or "", key)
    try:
        async with httpx2.AsyncClient(headers=target.headers, trust_env=False) as client:
            answer = (await client.get(f"{target.url}/models")).raise_for_status()
    except httpx2.HTTPStatusError as error:
        hint = "put a key into FINBACK_API_KEY" if error.response.status_code == 401 else None
        raise ConfigError(f"{url} answers {error.response.status_code}", hint=hint) from None
    except httpx2.HTTPError as error:
        hint = "start one with `finback serve`, or name another with --url"
        raise ConfigError(f"no server answers at {url}: {error}", hint=hint) from None
    cards = [card for card in answer.json()["data"] if model in (None, card["id"])]
    if not cards:
        raise ConfigError(f"{url} does not serve {model!r}")
    vocabulary = min(int(cards[0].get("vocab_size") or BYTES), MOST_IDS)
    return Target(target.url, cards[0]["id"], key, vocabulary), cards[0].get("context_length")


async def run(target: Target, asks: Sequence[Ask], *, speed: float, streams: int | None, seed: int) -> list[Felt]:
    """Put the load on the server. ``speed``: times the trace's own; ``streams``: at most so many at once."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(target.vocabulary) for _ in range(ask.prompt_tokens)] for ask in asks]
    felt = [Felt(ask) for ask in asks]
    room = asyncio.Semaphore(streams or len(asks))
    limits = httpx2.Limits(max_connections=None)
    async with AsyncExitStack() as open_clients:
        clients = [
            httpx2.AsyncClient(headers=target.headers, timeout=TIMEOUT_S, limits=limits, trust_env=False)
            for _ in range(CLIENTS)
        ]
        for client in clients:
            await open_clients.enter_async_context(client)
        began = time.perf_counter()

        async def one(client: httpx2.AsyncClient, prompt: list[int], seen: Felt) -> None:
            await asyncio.sleep(seen.ask.at_s / speed - (time.perf_counter() - began))
            async with room:
                await _ask(client, target, prompt, seen, began)

        await asyncio.gather(*map(one, itertools.cycle(clients), prompts, felt))
    return felt


async def _ask(client: httpx2.AsyncClient, target: Target, prompt: list[int], seen: Felt, began: float) -> None:
    body = {
        "model": target.model,
        "prompt": prompt,
        "max_tokens": seen.ask.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    seen.sent_s = time.perf_counter() - began
    try:
        async with client.stream("POST", f"{target.url}/completions", content=msgspec.json.encode(body)) as response:
            seen.status = response.status_code
            if response.status_code != 200:
                seen.error = (await response.aread()).decode(errors="replace")[:200]
            else:
                await _read(response, seen, began)
    except httpx2.HTTPError as error:
        seen.error = repr(error)
    seen.last_s = seen.last_s or time.perf_counter() - began


async def _read(response: httpx2.Response, seen: Felt, began: float) -> None:
    usage: dict[str, Any] | None = None
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = msgspec.json.decode(line[6:])
        if "error" in event:
            seen.error = str(event["error"])[:200]
        if any(choice.get("text") or choice.get("finish_reason") for choice in event.get("choices") or ()):
            seen.last_s = time.perf_counter() - began
            seen.first_s = seen.last_s if seen.first_s is None else seen.first_s
        usage = event.get("usage") or usage
    if usage is None:
        seen.error = seen.error or "the answer broke off"
    else:
        seen.prompt_tokens, seen.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]


def summary(felt: Sequence[Felt], *, slo_ttft_s: float, slo_tpot_s: float) -> dict[str, Any]:
    """The figures of a load. Goodput counts the requests whose times are both within what was set for them."""
    done = [one for one in felt if one.ok]
    duration = max((one.last_s for one in felt), default=0.0) or 1e-9
    good = [one for one in done if one.ttft_s <= slo_ttft_s and (one.tpot_s or 0.0) <= slo_tpot_s]
    statuses = sorted({one.status for one in felt})
    return {
        "requests": len(felt),
        "completed": len(done),
        "failed": len(felt) - len(done),
        "statuses": {str(status): sum(one.status == status for one in felt) for status in statuses},
        "errors": sorted({one.error for one in felt if one.error})[:5],
        "duration_s": duration,
        "requests_per_s": len(done) / duration,
        "prompt_tokens": sum(one.prompt_tokens for one in done),
        "output_tokens": sum(one.output_tokens for one in done),
        "prompt_tokens_per_s": sum(one.prompt_tokens for one in done) / duration,
        "output_tokens_per_s": sum(one.output_tokens for one in done) / duration,
        "ttft_s": percentiles([one.ttft_s for one in done]),
        "tpot_s": percentiles([one.tpot_s for one in done if one.tpot_s is not None]),
        "slo": {"ttft_s": slo_ttft_s, "tpot_s": slo_tpot_s},
        "goodput_requests_per_s": len(good) / duration,
        "good_share": len(good) / len(felt) if felt else 0.0,
    }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and percentiles (nearest rank); None without values."""
    if not values:
        return None
    ordered = sorted(values)
    ranks = {f"p{p}": ordered[max(0, -(-p * len(ordered) // 100) - 1)] for p in (50, 90, 95, 99)}
    return {"mean": sum(ordered) / len(ordered), **ranks, "max": ordered[-1]}
