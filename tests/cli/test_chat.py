"""A conversation over a pipe: turns, commands, reasoning, and errors that end a turn only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finback.cli.answer import Answer, Printer
from finback.cli.chat import Session
from finback.cli.conversation import Conversation
from tests.cli.conftest import Cli

Loaded = Callable[..., Any]


def questions(model: Any) -> list[Any]:
    return model.chat_format.asked


def test_every_line_is_answered(cli: Cli, loaded: Loaded) -> None:
    model = loaded("hé!")
    outcome = cli("chat", input="one\n\ntwo\n", status=0)
    assert outcome.out == "hé!\nhé!\n"
    assert outcome.err == ""
    assert questions(model) == [
        [{"role": "user", "content": "one"}],
        [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "hé!"},
            {"role": "user", "content": "two"},
        ],
    ]


def test_reasoning_stays_out_of_a_pipe(cli: Cli, loaded: Loaded) -> None:
    loaded("[hmm]yes")
    outcome = cli("chat", input="well?\n", status=0)
    assert outcome.out == "yes\n"
    assert outcome.err == "hmm\n\n"


def test_system_prompt_and_thinking(cli: Cli, loaded: Loaded) -> None:
    model = loaded("ok")
    cli("chat", "--system", "Be brief.", "--thinking", input="x\n/system none\n/set thinking off\ny\n", status=0)
    assert questions(model)[0][0] == {"role": "system", "content": "Be brief."}
    assert questions(model)[1][0] == {"role": "user", "content": "x"}
    assert model.chat_format.thinking == [True, False]


def test_exit_ends(cli: Cli, loaded: Loaded) -> None:
    model = loaded("x")
    for word in ("/exit", "/quit", "/bye"):
        assert cli("chat", input=f"{word}\nnot asked\n", status=0).out == ""
    assert questions(model) == []


def test_clear_forgets(cli: Cli, loaded: Loaded) -> None:
    model = loaded("ok")
    cli("chat", input="one\n/clear\ntwo\n", status=0)
    assert questions(model)[1] == [{"role": "user", "content": "two"}]


def test_regenerate_asks_again(cli: Cli, loaded: Loaded) -> None:
    model = loaded("ok")
    cli("chat", input="one\n/regenerate\n", status=0)
    assert questions(model) == [[{"role": "user", "content": "one"}]] * 2
    assert "no question" in cli("chat", input="/regenerate\n", status=0).err


def test_settings_are_used_and_shown(cli: Cli, loaded: Loaded) -> None:
    loaded("abcdef")
    outcome = cli("chat", input="/set\n/set max_tokens 3\nx\n/set max_tokens default\ny\n", status=0)
    assert outcome.out == "abc\nabcdef\n"
    assert "max_tokens 3" in outcome.err
    assert "cut off" in outcome.err


def test_stats(cli: Cli, loaded: Loaded) -> None:
    loaded("abc")
    outcome = cli("chat", input="/stats\nx\n/stats\n", status=0)
    assert "there is no answer yet" in outcome.err
    assert "4 answer tokens" in outcome.err
    rendered = len("user: x\nassistant: abc\n")
    assert f"context: {rendered} of 512 tokens used" in outcome.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/nonsense", "no command /nonsense"),
        ("/set temperature", "needs a value"),
        ("/set warmth 3", "not a setting"),
        ("/set temperature -1", "temperature"),
        ("/save", "needs a file name"),
        ("/load", "needs a file name"),
        ("/load /no/such/file", "No such file"),
        ("x" * 600, "the prompt has"),
    ],
)
def test_an_error_ends_the_turn_and_not_the_conversation(cli: Cli, loaded: Loaded, line: str, said: str) -> None:
    model = loaded("ok")
    outcome = cli("chat", input=f"one\n{line}\ntwo\n", status=0)
    assert said in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.out == "ok\nok\n"
    assert [message["content"] for message in questions(model)[-1]] == ["one", "ok", "two"]


def test_two_slashes_begin_a_message(cli: Cli, loaded: Loaded) -> None:
    model = loaded("ok")
    cli("chat", input="//usr/bin is what?\n", status=0)
    assert questions(model)[0][0]["content"] == "/usr/bin is what?"


def test_help_lists_the_commands(cli: Cli, loaded: Loaded) -> None:
    loaded("ok")
    text = cli("chat", input="/help\n", status=0).err
    for name in ("exit", "clear", "system", "set", "save", "load", "regenerate", "stats"):
        assert f"/{name}" in text


def test_a_conversation_is_saved_and_goes_on(cli: Cli, loaded: Loaded, tmp_path: Path) -> None:
    model = loaded("ok")
    path = tmp_path / "talk.json"
    cli("chat", input=f"one\n/save {path}\n", status=0)
    assert json.loads(path.read_text())["messages"][0]["content"] == "one"
    assert "File exists" in cli("chat", input=f"two\n/save {path}\n", status=0).err
    cli("chat", input=f"/load {path}\nthree\n", status=0)
    assert [message["content"] for message in questions(model)[-1]] == ["one", "ok", "three"]


def test_bytes_that_are_no_text(cli: Cli, loaded: Loaded) -> None:
    loaded("ok")
    assert cli("chat", input="\x00\x1b[2J\n", status=0).out == "ok\n"


def test_the_model_is_introduced(capsys: pytest.CaptureFixture[str], loaded: Loaded) -> None:
    class Config:
        class parameters:
            total = 134_515_008

    class Model:
        name = "smollm2:135m-q4_1"
        config = Config()
        context = 8192

        class settings:
            threads = 2

    import sys

    Session(Model(), Conversation(), Printer(sys.stdout, sys.stderr)).greet()
    said = capsys.readouterr().err
    assert "135 M parameters, context 8192 tokens, 2 threads" in said
    assert "often wrong" in said
    assert "/help" in said


def test_an_answer_is_described() -> None:
    answer = Answer("x", "", True, None, 10, 21, 0.5, 1.5)
    assert answer.tokens_per_s == pytest.approx(20)
    assert answer.describe() == "10 prompt tokens, first words after 0.50 s; 21 answer tokens, 20.0 tokens/s (stopped)"
    short = Answer("x", "", False, "stop", None, 1, 0.5, 0.5)
    assert short.tokens_per_s is None
    assert short.describe() == "first words after 0.50 s; 1 answer tokens"
