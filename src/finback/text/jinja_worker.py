"""Renders templates in a process of its own: the child side of ``jinja.py``.

Run as a script with one argument, the folder that holds the ``minijinja`` package. A template is a program out of a
model's file. The engine keeps it from Python and counts its steps; but long chains of operators overflow the stack of
the engine's parser, and what a template builds takes memory. So it may at most bring down this process, which holds
nothing but the conversation at hand and is limited in memory and time.

Requests and replies are JSON, each after its length in 8 bytes.
"""

from __future__ import annotations

import contextlib
import json
import struct
import sys
from datetime import datetime
from typing import Any, BinaryIO

MEMORY_BYTES = 1 << 29
STEPS = 10_000_000
SECONDS = 3  # of processor time for one template


class Refused(Exception):
    """The template itself refuses the conversation."""


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    sys.path.append(sys.argv[1])
    import minijinja

    _limit_memory()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    _send(replies, {"ready": True})
    while (request := _receive(requests)) is not None:
        _limit_time()
        try:
            reply = {"text": _render(minijinja, request)}
        except Refused as error:
            reply = {"refused": str(error)[:1000]}
        except (minijinja.TemplateError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
            reply = {"failed": str(error).split("\n", 1)[0][:1000] or type(error).__name__}
        if len(reply.get("text", "")) > request["longest"]:
            reply = {"failed": f"it made more than {request['longest']} characters"}
        _send(replies, reply)


def _render(minijinja: Any, request: dict[str, Any]) -> str:
    environment = minijinja.Environment(
        fuel=STEPS, pycompat=True, trim_blocks=True, lstrip_blocks=True, debug=False, undefined_behavior="lenient"
    )
    environment.add_filter("tojson", _to_json)
    environment.add_global("raise_exception", _raise_exception)
    environment.add_global("strftime_now", _strftime_now)
    text: str = environment.render_str(request["source"])
    return text


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=bool(options.get("sort_keys")))


def _raise_exception(message: Any) -> None:
    raise Refused(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(str(format)[:256])


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS refuses limits of address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _limit_time() -> None:
    """End this process by a signal when one template has used its processor time."""
    try:
        import resource
    except ImportError:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, hard))


def _receive(stream: BinaryIO) -> dict[str, Any] | None:
    head = stream.read(8)
    if len(head) < 8:
        return None
    request: dict[str, Any] = json.loads(stream.read(struct.unpack("<Q", head)[0]))
    return request


def _send(stream: BinaryIO, reply: dict[str, Any]) -> None:
    data = json.dumps(reply).encode()
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


if __name__ == "__main__":
    main()
