"""``finback run``: one prompt, one answer on stdout, everything else on stderr."""

from __future__ import annotations

import json as json_module
import os
import select
import stat
import sys
from typing import TYPE_CHECKING, Any

import click

from finback.cli import options
from finback.cli.output import note
from finback.errors import InvalidRequest

if TYPE_CHECKING:
    from finback.api import LoadedModel
    from finback.cli.answer import Answer

_STDIN_GRACE_S = 0.2


@click.command()
@click.argument("prompt", nargs=-1, metavar="[PROMPT...]", help="`-` stands for stdin.")
@options.model_option
@click.option("--system", "-s", metavar="TEXT", help="System prompt.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without a chat format.")
@options.thinking
@click.option("--max-tokens", "-n", type=int, metavar="N", help="Longest answer.")
@click.option("--temperature", type=float, help="0: always the likeliest token.")
@click.option("--top-p", type=float, help="Share of the likeliest tokens to choose from.")
@click.option("--seed", type=int, help="Makes chance repeatable.")
@click.option("--stats", is_flag=True, help="Print figures to stderr at the end.")
@options.threads
@options.context
@options.format
@options.json
def run(
    prompt: tuple[str, ...],
    model: str,
    system: str | None,
    raw: bool,
    thinking: bool | None,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stats: bool,
    threads: int | None,
    context: int | None,
    format: str | None,
    json: bool,
) -> None:
    """Answer one prompt.

    The answer goes to stdout, all else to stderr. Words of the prompt need no quotes; text that comes through a
    pipe is put after them.
    """
    from finback.cli.models import load, sampling_of

    text = _text_of(list(prompt))
    settings = options.settings_of(threads, context, format)
    asked = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    given = {name: value for name, value in asked.items() if value is not None}
    _check(given, system=system, thinking=thinking, raw=raw)
    with load(model, settings) as loaded:
        sampling = sampling_of(loaded.name, loaded) | given
        answer = _ask(loaded, text, system=system, thinking=thinking, raw=raw, sampling=sampling, quiet=json)
        if json:
            _print_record(loaded.name, answer)
        if stats:
            note(answer.describe())
    if answer.stopped:
        raise click.exceptions.Exit(130)


def _check(given: dict[str, Any], *, system: str | None, thinking: bool | None, raw: bool) -> None:
    """Refuse bad values before a model is loaded."""
    from finback.engine.request import SamplingParams

    SamplingParams(**given)
    if raw and (system is not None or thinking is not None):
        raise InvalidRequest("--raw continues text: it has no system prompt and no thinking")


def _ask(
    model: LoadedModel,
    text: str,
    *,
    system: str | None,
    thinking: bool | None,
    raw: bool,
    sampling: dict[str, Any],
    quiet: bool,
) -> Answer:
    import io
    import time

    from finback.cli.answer import Printer, chat_answer, follow
    from finback.cli.conversation import Conversation

    printer = Printer(io.StringIO(), io.StringIO()) if quiet else Printer(sys.stdout, sys.stderr)
    if raw:
        started = time.perf_counter()
        return follow(model.stream(text, **sampling), printer, started)
    talk = Conversation(system)
    talk.ask(text)
    return chat_answer(model, talk.prompt(), printer, thinking=thinking, sampling=sampling)


def _print_record(name: str, answer: Answer) -> None:
    record = {
        "model": name,
        "text": answer.text,
        "reasoning": answer.reasoning or None,
        "finish_reason": "interrupted" if answer.stopped else answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "first_piece_s": round(answer.first_piece_s, 4),
        "total_s": round(answer.total_s, 4),
        "tokens_per_s": answer.tokens_per_s,
    }
    sys.stdout.write(json_module.dumps(record, ensure_ascii=False) + "\n")


def _text_of(words: list[str]) -> str:
    """The prompt: the words given, and what comes through stdin."""
    if "-" in words:
        text = "\n\n".join(sys.stdin.read() if word == "-" else word for word in _joined(words))
    elif not words:
        if sys.stdin is None or sys.stdin.isatty():
            raise InvalidRequest("there is no prompt", hint='finback run "Why is the sky blue?"; or pipe one in')
        text = sys.stdin.read()
    else:
        text = "\n\n".join(part for part in (" ".join(words), _piped()) if part)
    if not text.strip():
        raise InvalidRequest("the prompt is empty")
    return text


def _joined(words: list[str]) -> list[str]:
    """Words between dashes, joined by spaces."""
    parts: list[list[str]] = [[]]
    for word in words:
        parts += [["-"], []] if word == "-" else []
        if word != "-":
            parts[-1].append(word)
    return [" ".join(part) for part in parts if part]


def _piped() -> str:
    """What is waiting on stdin beside a given prompt. A pipe that stays silent is not waited for: whoever started
    this program may simply have left it open.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        ready, _, _ = select.select([sys.stdin], [], [], _STDIN_GRACE_S)
        pipe = stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError):  # no real file behind it
        return ""
    if ready:
        return sys.stdin.read().strip()
    if pipe:
        note("nothing has come through stdin, so the prompt stands alone; write - where you want to wait for it")
    return ""
