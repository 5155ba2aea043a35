"""Commands run in this process, with a home of their own and an environment that nobody else has touched."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from finback.cli.app import app
from finback.hub.store import PulledModel, Store, StoredFile


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and the programs that tests start would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> tuple[str, str | None]:
        """(message, hint) of a reported error, which must be all that is on stderr."""
        first, *rest = self.err.splitlines()
        assert first.startswith("error: "), self.err
        assert len(rest) <= 1, self.err
        assert all(line.startswith("hint: ") for line in rest), self.err
        return first.removeprefix("error: "), rest[0].removeprefix("hint: ") if rest else None


Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loopback interface is reached directly, whatever this machine is set up with."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    for name in ("FINBACK_THREADS", "FINBACK_CONTEXT", "FINBACK_FORMAT", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FINBACK_HOME", str(folder))
    monkeypatch.setenv("FINBACK_CONFIG", "")  # the developer's own file shall not matter
    monkeypatch.setattr("finback.hub.wheel._download", _no_download)
    return folder


def _no_download(*arguments: object) -> None:
    raise AssertionError("a test must not reach for the network")


@pytest.fixture
def cli(home: Path) -> Cli:
    """``cli("list", "--json", input=None)``: run a command."""

    def run(*arguments: str, input: str | None = None, status: int | None = None) -> Outcome:
        result = CliRunner().invoke(app, list(arguments), input=input, prog_name="finback")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        outcome = Outcome(result.exit_code, result.stdout, result.stderr)
        assert status is None or outcome.status == status, outcome
        return outcome

    return run


def put_model(home: Path, name: str, content: bytes = b"GGUF" * 1000) -> PulledModel:
    """A pulled model of which nothing but the record is sound."""
    store = Store(home)
    path = store.files_folder(name) / "x.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    files = (StoredFile("x.gguf", len(content), "ab" * 32),)
    model = PulledModel(name, "somewhere", "c0ffee", "2026-01-02T03:04:05+00:00", path, files)
    store.record(model)
    return model


class BracketParser:
    """``[reasoning]`` in brackets, then the answer."""

    def __init__(self) -> None:
        self._reasons = False

    def push(self, text: str) -> list[Any]:
        from finback.text.stream import Content, Reasoning

        events: list[Any] = []
        for character in text:
            if character in "[]":
                self._reasons = character == "["
            else:
                events.append((Reasoning if self._reasons else Content)(character))
        return events

    def flush(self) -> list[Any]:
        return []


class LineChat:
    """One line per message; keeps the last things that it was asked to render."""

    name = "lines"
    supports_thinking = True
    default_thinking = False

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.thinking: list[bool | None] = []

    def render(self, messages: Any, **options: Any) -> list[Any]:
        from finback.text.chat import Piece

        self.asked.append([dict(message) for message in messages])
        self.thinking.append(options.get("thinking"))
        del self.asked[:-100], self.thinking[:-100]  # a soak should see the server's memory alone
        lines = (f"{message.get('role', '')}: {message.get('content', '')}\n" for message in messages)
        return [Piece(line, trusted=True) for line in lines]

    def parser(self, thinking: bool | None = None, **options: Any) -> BracketParser:
        return BracketParser()


@pytest.fixture
def loaded(make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``loaded("its answer")``: from now on every model is a tiny one that gives this answer."""
    from finback.api import LoadedModel
    from tests.conftest import TinyModel

    def load(script: str | None = None, **settings: Any) -> LoadedModel:
        model = LoadedModel("tiny", make_engine(TinyModel(script=script), **settings), LineChat())
        monkeypatch.setattr("finback.cli.models.load", lambda name, settings: model)
        monkeypatch.setattr(model, "close", lambda: None)  # a test may run several commands on it
        return model

    return load
