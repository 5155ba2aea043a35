"""A real server on a free loopback port, over a tiny model; the clients that talk to it are real too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from finback.api import LoadedModel
from finback.engine.request import SamplingParams
from finback.errors import InvalidRequest
from finback.meter.ledger import Ledger
from finback.meter.money import prices_of
from finback.meter.sqlite import SqliteBooks
from finback.server.app import create_app
from finback.server.edge import Gate
from finback.server.keys import KeyStore
from finback.server.listener import Listener, Patience, listen
from finback.server.worker import EngineWorker
from finback.text.chat import Piece
from finback.text.reasoning import ReasoningSplitter
from finback.text.stream import StreamParser


class PlainChat:
    """``role: text`` lines; reasoning between <think> tags."""

    name = "plain"
    supports_thinking = True
    default_thinking = False

    def render(self, messages: Any, *, tools: Any = None, thinking: Any = None, generation_prompt: bool = True) -> Any:
        if not all(isinstance(message.get("role"), str) for message in messages):
            raise InvalidRequest("a message has a role", parameter="messages")
        return [Piece(f"{message['role']}: {message.get('content')}\n", trusted=False) for message in messages]

    def parser(self, thinking: bool | None = None, **_: Any) -> Any:
        return StreamParser(ReasoningSplitter(opened=bool(thinking)))


@dataclass
class Running:
    """A server that answers at ``url``; ``engine`` is the one behind it, ``home`` where its keys are."""

    url: str
    server: Listener
    engine: Any
    app: Any
    home: Path
    gate: Gate
    model: LoadedModel


@pytest.fixture
def serve(make_engine: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """``serve(model=None, blocks=64, **settings)`` starts a server and stops it after the test."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(model: Any = None, patience: Patience | None = None, **options: Any) -> Running:
        engine = make_engine(model, **options)
        served = LoadedModel("tiny", engine, PlainChat(), SamplingParams(temperature=0.0))
        ledger = Ledger(SqliteBooks(tmp_path))
        prices = prices_of(engine.settings)
        worker, gate = EngineWorker(engine, served.renew), Gate()
        app = create_app(served, worker, KeyStore(tmp_path), ledger, gate=gate, prices=prices)
        config = listen(app, engine.settings.override(port=0), patience)
        server = Listener(config, gate, worker, grace_s=2)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        running.append((server, thread))
        port = server.servers[0].sockets[0].getsockname()[1]
        return Running(f"http://127.0.0.1:{port}", server, engine, app, tmp_path, gate, served)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=10)
        assert not thread.is_alive()
