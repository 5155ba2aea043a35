"""A conversation's state: turns, settings, and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finback.cli.conversation import Conversation
from finback.errors import InvalidRequest


def talked() -> Conversation:
    talk = Conversation("Be brief.")
    talk.ask("one?")
    talk.hear("two", "thinking")
    return talk


def test_turns_in_the_shape_that_models_are_asked_in() -> None:
    assert talked().prompt() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "two", "reasoning_content": "thinking"},
    ]


def test_an_empty_answer_is_forgotten_with_its_question() -> None:
    talk = talked()
    talk.ask("three?")
    talk.hear("", "")
    assert talk.prompt() == talked().prompt()


def test_taking_back() -> None:
    talk = talked()
    assert talk.take_back() == "one?"
    assert talk.messages == []
    assert talk.take_back() is None


def test_settings() -> None:
    talk = Conversation()
    for name, text in (("temperature", "0.7"), ("top_k", "40"), ("seed", "5"), ("thinking", "on")):
        talk.set(name, text)
    assert talk.settings() == {"temperature": 0.7, "top_k": 40, "seed": 5, "thinking": True}
    talk.set("temperature", "default")
    talk.set("thinking", "default")
    assert talk.settings() == {"top_k": 40, "seed": 5}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temprature", "1"),
        ("temperature", "warm"),
        ("temperature", "-1"),
        ("temperature", "nan"),
        ("top_p", "2"),
        ("top_k", "1.5"),
        ("max_tokens", "0"),
        ("thinking", "maybe"),
        ("stop", "x"),
        ("temprature", "default"),
    ],
)
def test_bad_settings_change_nothing(name: str, text: str) -> None:
    talk = Conversation()
    with pytest.raises(InvalidRequest):
        talk.set(name, text)
    assert talk.settings() == {}


def test_saved_and_loaded(tmp_path: Path) -> None:
    talk = talked()
    talk.set("temperature", "0.3")
    talk.set("thinking", "off")
    talk.save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json") == talk


def test_saving_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        talked().save(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"system": 3},
        {"thinking": "yes"},
        {"sampling": {"temprature": 1}},
        {"sampling": {"temperature": "hot"}},
        {"sampling": []},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": "y"}]},
        {"messages": 5},
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "talk.json"
    talked().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InvalidRequest):
        Conversation.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", "[" * 50_000, "\udcff"])
def test_files_of_other_kinds_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidRequest, match="not a saved conversation"):
        Conversation.load(path)
