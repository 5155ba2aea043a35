"""One prompt, one answer: where text comes from, where it goes, and what a record holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finback.cli import run
from finback.errors import InvalidRequest
from tests.cli.conftest import Cli

Loaded = Callable[..., Any]


def test_the_answer_alone_is_on_stdout(cli: Cli, loaded: Loaded) -> None:
    model = loaded("[hmm]because")
    outcome = cli("run", "why", "is", "that?", status=0)
    assert outcome.out == "because\n"
    assert outcome.err == "hmm\n\n"
    assert model.chat_format.asked == [[{"role": "user", "content": "why is that?"}]]


def test_a_prompt_from_stdin(cli: Cli, loaded: Loaded) -> None:
    model = loaded("ok")
    cli("run", input="from a pipe\n", status=0)
    cli("run", "-", input="by a dash", status=0)
    cli("run", "before", "-", "after", "it", input="between", status=0)
    asked = [messages[0]["content"] for messages in model.chat_format.asked]
    assert asked == ["from a pipe\n", "by a dash", "before\n\nbetween\n\nafter it"]


def test_no_prompt_at_all(cli: Cli) -> None:
    assert "empty" in cli("run", input="", status=1).error[0]


def test_options_reach_the_model(cli: Cli, loaded: Loaded) -> None:
    model = loaded("abcdef")
    assert cli("run", "-n", "3", "--system", "s", "--thinking", "x", status=0).out == "abc\n"
    assert model.chat_format.asked[0][0] == {"role": "system", "content": "s"}
    assert model.chat_format.thinking == [True]


def test_chance_is_repeatable(cli: Cli, loaded: Loaded) -> None:
    loaded()
    first, second, other = (cli("run", "x", "-n", "20", "--seed", seed, "--raw", status=0).out for seed in "112")
    assert first == second != other


def test_raw_continues_text(cli: Cli, loaded: Loaded) -> None:
    model = loaded("more")
    assert cli("run", "--raw", "some", status=0).out == "more\n"
    assert model.chat_format.asked == []


def test_a_record(cli: Cli, loaded: Loaded) -> None:
    loaded("[hmm]yes")
    record = cli("run", "--json", "x", status=0).json
    assert record["text"] == "yes"
    assert record["reasoning"] == "hmm"
    assert record["finish_reason"] == "stop"
    assert record["completion_tokens"] == 9
    assert record["total_s"] >= record["first_piece_s"] > 0


def test_figures_when_asked(cli: Cli, loaded: Loaded) -> None:
    loaded("yes")
    assert "answer tokens" in cli("run", "--stats", "x", status=0).err


def test_a_prompt_that_is_too_long(cli: Cli, loaded: Loaded) -> None:
    loaded("x")
    message, hint = cli("run", "x" * 600, status=1).error
    assert "600" in message or "60" in message
    assert hint


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The writing end of a pipe; stdin is the other."""
    reader, writer = os.pipe()
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield writer
    with contextlib.suppress(OSError):
        os.close(writer)


def test_a_pipe_beside_a_prompt(pipe: int, capsys: pytest.CaptureFixture[str]) -> None:
    os.write(pipe, b"the text\n")
    os.close(pipe)
    assert run._text_of(["Summarise:"]) == "Summarise:\n\nthe text"
    assert capsys.readouterr().err == ""


def test_an_empty_pipe_beside_a_prompt(pipe: int, capsys: pytest.CaptureFixture[str]) -> None:
    os.close(pipe)
    assert run._text_of(["alone"]) == "alone"
    assert capsys.readouterr().err == ""


def test_a_silent_pipe_is_not_waited_for(pipe: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run._text_of(["alone"]) == "alone"
    assert "nothing has come through stdin" in capsys.readouterr().err


def test_no_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert run._text_of(["alone"]) == "alone"
    with pytest.raises(InvalidRequest, match="no prompt"):
        run._text_of([])
