"""Requests that nobody means: what the OpenAPI document allows, what it does not, and bytes that are no request at all.

Bytes, headers, paths and keys are damaged too. The server's own counts of statuses tell how it went.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx2

HANG_S = 120.0  # a machine may be busy; a server that takes longer hangs
AT_ONCE = 8
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "go on"}]},
    "/v1/completions": {"model": "tiny", "prompt": "go on"},
}
NUMBERS = (-1, 0, 1, 2, 16, 17, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 1e308, -0.0, 5e-324, 0.5, 10**400)
TEXTS = ("", "tiny", "\0", "\ud800", "\u202e", "a" * 3000, "<|im_end|>", "<think>", "{{7*7}}", "' OR 1=1 --", "../../x")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "QUERY")


class Generator:
    """Draws requests: mostly sound ones with something wrong."""

    def __init__(self, document: dict[str, Any], keys: Sequence[str], seed: int) -> None:
        schemas = document["components"]["schemas"]
        shapes = {"/v1/chat/completions": "ChatRequest", "/v1/completions": "CompletionRequest"}
        self._fields = {path: sorted(schemas[shape]["properties"]) for path, shape in shapes.items()}
        self._paths = sorted(document["paths"])
        self._keys = keys
        self._rng = random.Random(seed)

    def draw(self) -> tuple[str, str, dict[str, str], bytes]:
        """Method, path, headers, body."""
        rng = self._rng
        headers = {"authorization": f"Bearer {rng.choice(self._keys)}"}
        if rng.random() < 0.1:
            headers[
                rng.choice(("content-type", "accept", "host", "origin", "expect", "x-request-id", "connection"))
            ] = rng.choice(("", "application/json", "text/html", "*", "100-continue", "close", "a" * 500))
        if rng.random() < 0.75:
            path = rng.choice(sorted(BASES))
            return "POST", path, headers, self._body(path)
        path = rng.choice(self._paths).replace("{name}", quote(rng.choice(TEXTS[:3] + TEXTS[4:])))
        if rng.random() < 0.3:
            path += rng.choice(("/", "//", "/..", "/%2e%2e/", "/%00", "%", "\u00e9", "/" + "x" * 2000))
        if rng.random() < 0.5:
            path += (
                "?" + quote(rng.choice(("days", "key", "x", ""))) + "=" + quote(str(self._scalar()), errors="replace")
            )
        body = self._damaged(b'{"a": 1}') if rng.random() < 0.2 else b""
        return rng.choice(METHODS if rng.random() < 0.3 else ("GET",)), path, headers, body

    def _body(self, path: str) -> bytes:
        rng = self._rng
        body = {**BASES[path], "max_tokens": rng.randrange(1, 8), "stream": rng.random() < 0.3}
        for field in rng.sample(self._fields[path], rng.choice((0, 1, 1, 1, 2, 3))):
            body[field] = self._value(3)
        if rng.random() < 0.1:
            body.pop(rng.choice(sorted(body)))
        text = json.dumps(body, ensure_ascii=rng.random() < 0.8).encode(errors="surrogatepass")
        return self._damaged(text) if rng.random() < 0.2 else text

    def _scalar(self) -> Any:
        rng = self._rng
        return rng.choice(
            (None, True, False, rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(("auto", "none", "low")))
        )

    def _value(self, depth: int) -> Any:
        rng = self._rng
        kind = rng.random()
        if depth == 0 or kind < 0.6:
            return self._scalar()
        if kind < 0.8:
            return [self._value(depth - 1) for _ in range(rng.choice((0, 1, 2, 20)))]
        names = ("type", "role", "content", "function", "name", "parameters", "include_usage", "tool_calls", "0", "5")
        return {rng.choice(names): self._value(depth - 1) for _ in range(rng.randrange(4))}

    def _damaged(self, text: bytes) -> bytes:
        rng = self._rng
        found = bytearray(text)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(found) + 1)
            piece = rng.choice((b"", bytes([rng.randrange(256)]), b"[" * 300, b'"', b"\\u", bytes(found[at : at + 20])))
            found[at : at + rng.randrange(8)] = piece
        return bytes(found)


async def own(url: str, generator: Generator, count: int) -> Counter[int]:
    """So many drawn requests; the statuses seen. Raises when one is not answered in time."""
    seen: Counter[int] = Counter()
    waiting = iter(range(count))
    async with httpx2.AsyncClient(timeout=HANG_S, trust_env=False) as client:

        async def work() -> None:
            for _ in waiting:
                method, path, headers, body = generator.draw()
                try:
                    response = await client.request(method, url + path, headers=headers, content=body)
                    seen[response.status_code] += 1
                except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                    seen[0] += 1  # refused before it was read to its end
                except (httpx2.LocalProtocolError, httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError):
                    seen[-1] += 1  # the client does not send such a thing

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return seen


def counted(exposition: str) -> Counter[int]:
    """Responses by status, as the server's metrics tell."""
    found: Counter[int] = Counter()
    for status, count in re.findall(r'finback_http_requests_total\{.*status="(\d+)"\} (\d+)', exposition):
        found[int(status)] += int(count)
    return found
