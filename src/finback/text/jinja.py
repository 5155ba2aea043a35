"""Renders chat templates out of model files, which nobody vouches for.

The engine is MiniJinja, written in Rust, in a helper process: see ``jinja_worker.py`` for why. The conversation is put
into the template's source as literals, so the template works on the engine's own strings, lists and mappings, and no
object of Python's is within its reach. Steps, memory, time and output are bounded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from threading import Lock, Timer
from typing import Any, cast

from finback.errors import TemplateError

MAX_TEMPLATE = 1 << 18  # characters
MAX_OUTPUT = 1 << 23  # likewise
RENDER_SECONDS = 8.0
START_SECONDS = 60.0
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")

Pipes = subprocess.Popen[bytes]


class TemplateRenderer:
    """Renders templates, one at a time. The helper process starts with the first one and ends with this object."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._helper: Pipes | None = None

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The text that ``template`` makes of ``variables``, which hold JSON data only."""
        if len(template) > MAX_TEMPLATE:
            raise TemplateError(f"the chat template has more than {MAX_TEMPLATE} characters")
        request = {"source": _with_variables(template, variables), "longest": MAX_OUTPUT}
        data = json.dumps(request).encode()
        with self._lock:
            reply = self._ask(data)
        if "text" in reply:
            return str(reply["text"])
        if "refused" in reply:
            raise TemplateError(
                f"the chat template refuses this conversation: {reply['refused']}", parameter="messages"
            )
        raise TemplateError(f"the chat template failed: {reply['failed']}", parameter="messages")

    def _ask(self, data: bytes) -> dict[str, Any]:
        if self._helper is not None and self._helper.poll() is not None:  # it died while idle
            self._stop()
        if self._helper is None:
            self._helper = _start()
            weakref.finalize(self, _end, self._helper)
        reply = _exchange(self._helper, data, RENDER_SECONDS)
        if reply is None:
            self._stop()
            raise TemplateError("the chat template takes too much time or memory, or is nested too deeply")
        return reply

    def _stop(self) -> None:
        if self._helper is not None:
            _end(self._helper)
        self._helper = None


def _start() -> Pipes:
    """Start the helper: an isolated Python that sees the standard library and MiniJinja only."""
    package = importlib.util.find_spec("minijinja")
    if package is None or package.origin is None or not sys.executable:
        raise TemplateError("chat templates need the package minijinja and a Python to run it in")
    worker = Path(__file__).with_name("jinja_worker.py")
    helper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(worker), str(Path(package.origin).parent.parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
        start_new_session=True,  # Ctrl-C is for us
    )
    if _exchange(helper, None, START_SECONDS) is None:
        _end(helper)
        raise TemplateError("the helper process that renders chat templates does not start")
    return helper


def _exchange(helper: Pipes, data: bytes | None, seconds: float) -> dict[str, Any] | None:
    """Send a request, if any, and wait for a reply; None if the helper died, by itself or because time was up."""
    assert helper.stdin is not None
    assert helper.stdout is not None
    timer = Timer(seconds, helper.kill)
    timer.daemon = True
    timer.start()
    try:
        if data is not None:
            helper.stdin.write(struct.pack("<Q", len(data)) + data)
            helper.stdin.flush()
        head = helper.stdout.read(8)
        body = helper.stdout.read(struct.unpack("<Q", head)[0]) if len(head) == 8 else b""
        return cast("dict[str, Any]", json.loads(body)) if body else None
    except (OSError, ValueError):  # the pipe is closed, or the reply was cut
        return None
    finally:
        timer.cancel()


def _end(helper: Pipes) -> None:
    helper.kill()
    for pipe in (helper.stdin, helper.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not yet written cannot be
                pipe.close()
    helper.wait()


def _with_variables(template: str, variables: Mapping[str, Any]) -> str:
    """The template after a line that sets the variables; the line leaves nothing in the output."""
    settings = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in variables.items())
    template = _without_generation_marks(template)
    return f"{settings}\n{template}" if settings else template


def _literal(value: Any) -> str:
    """JSON data as an expression of the template language."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_literal(key)}:{_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _without_generation_marks(template: str) -> str:
    """Without the tags that mark, for training, which text the model wrote: they change nothing."""
    for tag, plain in (("endgeneration", "endif"), ("generation", "if true")):
        for opening in ("{%", "{%-"):
            for closing in ("%}", "-%}"):
                template = template.replace(f"{opening} {tag} {closing}", f"{opening} {plain} {closing}")
    return template
