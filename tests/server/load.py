"""Clients that ask a server for many things at once, some of which hang up; and what they were told."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import httpx2


@dataclass
class Seen:
    """What one client knows of its request."""

    status: int = 0
    id: str = ""
    usage: dict[str, Any] | None = None  # once the answer's end was told
    texts: dict[int, str] = field(default_factory=dict)
    error: str = ""

    @property
    def acknowledged(self) -> bool:
        return self.usage is not None


def body_of(rng: random.Random, model: str, max_tokens: int) -> dict[str, Any]:
    """A request of some shape."""
    words = " ".join(rng.choice(("whale", "sea", "song", "fin")) for _ in range(rng.randrange(1, 30)))
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": rng.randrange(1, max_tokens),
        "n": rng.choice((1, 1, 1, 2, 3)),
    }
    if rng.random() < 0.5:
        body["messages"] = [{"role": "user", "content": words}]
    else:
        body["prompt"] = words
    if rng.random() < 0.7:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


async def ask(client: httpx2.AsyncClient, body: dict[str, Any], leave_after: int | None, seen: Seen) -> None:
    """One request; ``leave_after``: hang up after so many lines of a stream, or soon when it is none."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    try:
        async with asyncio.timeout(None if leave_after is None or body.get("stream") else 0.02 * leave_after):
            async with client.stream("POST", path, json=body) as response:
                seen.status, seen.id = response.status_code, response.headers.get("x-request-id", "")
                if not body.get("stream") or response.status_code != 200:
                    answer = json.loads(await response.aread())
                    seen.usage, seen.error = answer.get("usage"), str(answer.get("error", ""))
                    return
                await read_events(response, leave_after, seen)
    except (httpx2.HTTPError, TimeoutError) as fault:
        seen.error = seen.error or repr(fault)


async def read_events(response: httpx2.Response, leave_after: int | None, seen: Seen) -> None:
    """Read a stream; its usage counts once [DONE] has come."""
    usage = None
    lines = 0
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        lines += 1
        if leave_after is not None and lines > leave_after:
            return
        if line == "data: [DONE]":
            seen.usage = usage
            return
        event = json.loads(line.removeprefix("data: "))
        seen.error = str(event.get("error", seen.error))
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            text = choice.get("text") or choice.get("delta", {}).get("content") or ""
            seen.texts[choice["index"]] = seen.texts.get(choice["index"], "") + text


async def mixed_load(
    url: str,
    *,
    requests: int,
    at_once: int,
    seed: int,
    max_tokens: int = 40,
    leaving: float = 0.3,
    model: str = "tiny",
    key: str | None = None,
) -> list[Seen]:
    """``requests`` of many shapes, ``at_once`` in flight; a share of ``leaving`` hangs up somewhere."""
    rng = random.Random(seed)
    plans = []
    for _ in range(requests):
        leave_after = rng.randrange(30) if rng.random() < leaving else None
        plans.append((body_of(rng, model, max_tokens), leave_after, Seen()))
    waiting = iter(plans)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    limits = httpx2.Limits(max_connections=at_once)
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits) as client:

        async def work() -> None:
            for body, leave_after, seen in waiting:
                await ask(client, body, leave_after, seen)

        await asyncio.gather(*(work() for _ in range(at_once)))
    return [seen for _, _, seen in plans]
